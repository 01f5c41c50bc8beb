//! The analysis of one file: its result, which is stored in the cache, and the parser's limits.

use proc_macro2::{Delimiter, LineColumn, Span, TokenStream, TokenTree};
use serde::{Deserialize, Serialize};

use crate::functions;

/// Must be raised with every change to the results or their encoding. Results of older versions are
/// then no longer found, and the cache evicts them when it needs the space.
pub(crate) const ANALYSIS_VERSION: i64 = 1;

/// The result for one file.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Analysis {
    pub(crate) lines: u32,
    /// Whether the file says that a program wrote it.
    pub(crate) generated: bool,
    pub(crate) outcome: Outcome,
}

/// A file that does not parse has a result too, so that it is not parsed again.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) enum Outcome {
    Parsed(Vec<Function>),
    Rejected { line: u32, column: u32, message: String },
}

/// One function with a body.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Function {
    /// With the modules, types and functions around it: `parser::<Token as Display>::fmt`.
    pub(crate) name: String,
    /// The first and the last line.
    pub(crate) first_line: u32,
    pub(crate) last_line: u32,
    /// Whether it is a test, or part of what is compiled for tests only.
    pub(crate) test: bool,
    /// Cyclomatic complexity: 1, and 1 more for each decision.
    pub(crate) complexity: u32,
    /// How deep blocks are nested at most.
    pub(crate) nesting: u32,
    pub(crate) fingerprint: Option<Fingerprint>,
}

impl Function {
    pub(crate) fn lines(&self) -> u32 {
        self.last_line - self.first_line + 1
    }
}

/// Data to find near-duplicates. A function that is too short has none.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Fingerprint {
    /// The hash of all tokens, without the names of variables.
    pub(crate) identity: u64,
    /// The number of distinct shingles (runs of a few tokens).
    pub(crate) shingles: u32,
    /// Their smallest hashes, sorted: all hashes of most functions, a fair sample of long ones.
    pub(crate) sample: Vec<u32>,
}

/// Deeper nested delimiters, and longer runs of tokens without a separator, are refused: the parser
/// is recursive, and a stack overflow would abort the process. Real programs stay far below.
const MOST_NESTED: usize = 256;
const MOST_IN_A_ROW: usize = 5000;

/// Analyses a file with this content.
pub(crate) fn analyze(content: &[u8]) -> Analysis {
    let lines = content.split_inclusive(|&byte| byte == b'\n').count();
    let outcome = match std::str::from_utf8(content) {
        Ok(text) => parse(text),
        Err(e) => {
            let before = &content[..e.valid_up_to()];
            let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
            Outcome::Rejected { line: narrow(line), column: 1, message: "not UTF-8".to_owned() }
        }
    };
    // The parser keeps all parsed text for its spans until the thread ends; this frees it.
    proc_macro2::extra::invalidate_current_thread_spans();
    Analysis { lines: narrow(lines), generated: says_generated(content), outcome }
}

/// Whether one of the first five lines has a usual marker of generated code.
fn says_generated(content: &[u8]) -> bool {
    let head: Vec<&[u8]> = content.splitn(6, |&byte| byte == b'\n').take(5).collect();
    let head = String::from_utf8_lossy(&head.concat()).to_lowercase();
    ["@generated", "automatically generated", "do not edit"]
        .iter()
        .any(|words| head.contains(words))
}

fn parse(text: &str) -> Outcome {
    if let Some(span) = text.parse().ok().and_then(too_deep) {
        let message = "nested too deeply to be parsed".to_owned();
        return rejected(span.start(), message);
    }
    match syn::parse_file(text) {
        Ok(file) => Outcome::Parsed(functions::of(&file)),
        Err(e) => rejected(e.span().start(), e.to_string()),
    }
}

fn rejected(at: LineColumn, message: String) -> Outcome {
    Outcome::Rejected { line: narrow(at.line), column: narrow(at.column + 1), message }
}

/// The first place where the parser would recurse too deep. Not recursive itself.
fn too_deep(tokens: TokenStream) -> Option<Span> {
    // For each open delimiter: its remaining tokens, the number of tokens since the last separator,
    // and the number of `else`s, each of which the parser nests in the one before it.
    let mut open = vec![(tokens.into_iter(), 0, 0)];
    while let Some((tokens, in_a_row, elses)) = open.last_mut() {
        let Some(token) = tokens.next() else {
            open.pop();
            continue;
        };
        *in_a_row += 1;
        match &token {
            TokenTree::Punct(punct) if matches!(punct.as_char(), ';' | ',') => *in_a_row = 0,
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => *in_a_row = 0,
            TokenTree::Ident(ident) if ident == "else" => *elses += 1,
            _ => {}
        }
        if *in_a_row.max(elses) > MOST_IN_A_ROW || open.len() > MOST_NESTED {
            return Some(token.span());
        }
        if let TokenTree::Group(group) = token {
            open.push((group.stream().into_iter(), 0, 0));
        }
    }
    None
}

/// Narrows a count. No file has four billion lines, so the limit is never reached.
pub(crate) fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
