//! What is found out about one file, and kept.

use proc_macro2::{Delimiter, LineColumn, Span, TokenStream, TokenTree};
use serde::{Deserialize, Serialize};

use crate::functions;

/// To be raised with every change to what is computed or how it is stored: results of older versions are
/// then no longer found, and the cache drops them when it needs the room.
pub(crate) const ANALYSIS_VERSION: i64 = 1;

/// The result for one file.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Analysis {
    pub(crate) lines: u32,
    /// Whether the file says that a program wrote it.
    pub(crate) generated: bool,
    pub(crate) outcome: Outcome,
}

/// A file that does not parse has a result too, which need not be computed again either.
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

/// What near-duplicates are found by. Too short a function has none.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Fingerprint {
    /// Of all tokens, with the names of variables left out.
    pub(crate) identity: u64,
    /// How many different shingles (runs of a few tokens) there are.
    pub(crate) shingles: u32,
    /// The smallest of their hashes, in order: all of them in most functions, a fair sample in long ones.
    pub(crate) sample: Vec<u32>,
}

/// Delimiters nested deeper than this, and longer runs of tokens that nothing divides, are refused: the parser
/// works by recursion, and a stack that overflows is the end of the process. No sane program comes near.
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
    // The parser keeps the text of what it has parsed, for the spans, as long as the thread lives.
    proc_macro2::extra::invalidate_current_thread_spans();
    Analysis { lines: narrow(lines), generated: says_generated(content), outcome }
}

/// Whether one of the first lines says so, the way that code generators put it.
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

/// Where the parser would have to descend too deep, if anywhere. Itself without recursion.
fn too_deep(tokens: TokenStream) -> Option<Span> {
    // For each open delimiter: what is left in it, the tokens since something divided them, and the `else`s,
    // each of which is nested in the one before it in a chain.
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

/// No file has four thousand million lines.
pub(crate) fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
