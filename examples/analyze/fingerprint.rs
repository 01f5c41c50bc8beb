//! Fingerprints of functions, which find copies even after variables were renamed and a few lines
//! were changed.
//!
//! The tokens are normalised first: the names of variables, generic parameters and lifetimes do not
//! count, nor do the values of literals, while the names of types, fields and functions do. Then
//! each run of a few tokens (a shingle) is hashed. The similarity of two functions is the Jaccard
//! index of their sets of shingles: common shingles / all shingles. For long functions it is
//! estimated from the smallest hashes of each (a bottom-k sketch).
//!
//! The hashes are stored, so they must be the same in every build: SipHash with fixed keys, and not
//! the standard library's `DefaultHasher`, which may change.

use std::collections::HashSet;
use std::hash::Hasher;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use quote::ToTokens;
use siphasher::sip::SipHasher13;
use syn::visit::{self, Visit};
use syn::{Block, Signature};

use crate::analysis::{Fingerprint, narrow};

/// Functions with fewer tokens, about six lines, are often alike because there is only one way to
/// write them.
pub(crate) const LEAST_TOKENS: usize = 60;
/// Tokens in a shingle. In longer shingles a small change weighs more.
const SHINGLE: usize = 5;
/// Hashes in a sample. Functions with at most this many shingles are compared exactly.
pub(crate) const SAMPLE: usize = 128;

/// The fingerprint of a function, unless it is too short to have one.
pub(crate) fn of(sig: &Signature, block: &Block) -> Option<Fingerprint> {
    let mut variables = Variables::default();
    variables.visit_signature(sig);
    variables.visit_block(block);
    let mut normal = Normaliser { variables: variables.0, tokens: Vec::new() };
    normal.stream(sig.inputs.to_token_stream());
    normal.stream(sig.output.to_token_stream());
    normal.stream(block.to_token_stream());
    let tokens = normal.tokens;
    if tokens.len() < LEAST_TOKENS {
        return None;
    }
    // 32 of the hash's 64 bits are enough for a sample, and take half the space.
    let mut hashes: Vec<u32> =
        tokens.windows(SHINGLE).map(|run| (hash_all(run) >> 32) as u32).collect();
    hashes.sort_unstable();
    hashes.dedup();
    let shingles = narrow(hashes.len());
    hashes.truncate(SAMPLE);
    Some(Fingerprint { identity: hash_all(&tokens), shingles, sample: hashes })
}

/// The similarity of two functions, from 0 to 1.
pub(crate) fn similarity(a: &Fingerprint, b: &Fingerprint) -> f64 {
    if a.identity == b.identity {
        return 1.0;
    }
    let whole = |f: &Fingerprint| f.sample.len() == f.shingles as usize;
    // The smallest hashes of both samples together are an unbiased sample of the union, up to the
    // number of hashes in one sample.
    let most = if whole(a) && whole(b) { usize::MAX } else { SAMPLE };
    let (mut i, mut j, mut union, mut common) = (0, 0, 0, 0);
    while union < most {
        match (a.sample.get(i), b.sample.get(j)) {
            (Some(x), Some(y)) if x == y => {
                common += 1;
                i += 1;
                j += 1;
            }
            (Some(x), Some(y)) if x > y => j += 1,
            (Some(_), _) => i += 1,
            (None, Some(_)) => j += 1,
            (None, None) => break,
        }
        union += 1;
    }
    f64::from(common) / union as f64
}

/// The names that a function gives to its variables and generic parameters.
#[derive(Default)]
struct Variables(HashSet<String>);

impl<'ast> Visit<'ast> for Variables {
    fn visit_pat_ident(&mut self, node: &'ast syn::PatIdent) {
        let name = node.ident.to_string();
        // In a pattern, a name with a capital letter is a constant or a variant.
        if !name.starts_with(char::is_uppercase) {
            self.0.insert(name);
        }
        visit::visit_pat_ident(self, node);
    }

    fn visit_type_param(&mut self, node: &'ast syn::TypeParam) {
        self.0.insert(node.ident.to_string());
        visit::visit_type_param(self, node);
    }
}

/// Turns tokens into hashes. Tokens that count as equal have equal hashes.
struct Normaliser {
    variables: HashSet<String>,
    tokens: Vec<u64>,
}

impl Normaliser {
    fn stream(&mut self, stream: TokenStream) {
        let mut before = Before::Other;
        for tree in stream {
            before = match tree {
                TokenTree::Group(group) if before == Before::Hash && is_doc(&group) => {
                    // A doc comment: remove its `#`.
                    self.tokens.pop();
                    Before::Other
                }
                TokenTree::Group(group) => {
                    self.group(&group);
                    Before::Other
                }
                TokenTree::Ident(ident) => {
                    let name = ident.to_string();
                    match before {
                        Before::Apostrophe => self.push("'"),
                        Before::Member => self.push(&name),
                        _ if self.variables.contains(&name) => self.push("$"),
                        _ => self.push(&name),
                    }
                    Before::Other
                }
                TokenTree::Punct(punct) => {
                    self.push(punct.as_char().encode_utf8(&mut [0; 4]));
                    before.then(punct.as_char())
                }
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    self.push(if text.contains(['"', '\'']) { "text" } else { "number" });
                    Before::Other
                }
            };
        }
    }

    fn group(&mut self, group: &Group) {
        let (open, close) = match group.delimiter() {
            Delimiter::Parenthesis => ("(", ")"),
            Delimiter::Brace => ("{", "}"),
            Delimiter::Bracket => ("[", "]"),
            Delimiter::None => ("", ""),
        };
        self.push(open);
        self.stream(group.stream());
        self.push(close);
    }

    fn push(&mut self, text: &str) {
        let mut hasher = SipHasher13::new();
        hasher.write(text.as_bytes());
        self.tokens.push(hasher.finish());
    }
}

/// The context before a token, which decides what a name means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// `.` or `::`: the name is one of a field, a method or an item.
    Member,
    /// The name is that of a lifetime.
    Apostrophe,
    /// An attribute follows, maybe a doc comment.
    Hash,
    /// One colon: a second may follow.
    Colon,
    Other,
}

impl Before {
    fn then(self, punct: char) -> Self {
        match (self, punct) {
            (Self::Colon, ':') => Self::Member,
            (_, ':') => Self::Colon,
            // Two dots are a range.
            (Self::Member, '.') => Self::Other,
            (_, '.') => Self::Member,
            (_, '\'') => Self::Apostrophe,
            (_, '#') => Self::Hash,
            _ => Self::Other,
        }
    }
}

fn is_doc(group: &Group) -> bool {
    matches!(group.stream().into_iter().next(), Some(TokenTree::Ident(ident)) if ident == "doc")
}

fn hash_all(hashes: &[u64]) -> u64 {
    let mut hasher = SipHasher13::new();
    for hash in hashes {
        hasher.write(&hash.to_le_bytes());
    }
    hasher.finish()
}
