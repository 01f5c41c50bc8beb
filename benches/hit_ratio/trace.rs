//! Reads the traces in `benches/traces`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::peers::Policy;

/// The requests of one trace. Keys are numbered in the order of their first request.
pub(crate) struct Trace {
    pub(crate) name: &'static str,
    pub(crate) requests: Vec<u32>,
    /// The object size of each request in bytes, if the trace has sizes.
    pub(crate) sizes: Option<Vec<u32>>,
    pub(crate) distinct: usize,
}

/// The files in `benches/traces`.
pub(crate) const NAMES: [&str; 7] = [
    "2-pools.txt.gz",
    "cdn-sized.txt.xz",
    "corda-vault.be64.gz",
    "oltp.arc.zst",
    "orm-busy.be32.xz",
    "sprite.txt.gz",
    "web12.be32.xz",
];

/// Hit ratios, in percent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ratios {
    pub(crate) of_requests: f64,
    /// Equal to `of_requests` if the trace has no sizes.
    pub(crate) of_bytes: f64,
}

impl Trace {
    /// The number of entries that is this percentage of the distinct keys.
    pub(crate) fn capacity(&self, percent: usize) -> usize {
        (self.distinct * percent / 100).max(1)
    }

    /// Sends all requests to `policy`.
    pub(crate) fn replay(&self, policy: &mut dyn Policy) -> Ratios {
        let size = |at: usize| self.sizes.as_ref().map_or(1, |sizes| u64::from(sizes[at]));
        let (mut hits, mut hit_bytes, mut bytes) = (0u64, 0, 0);
        for (at, key) in self.requests.iter().enumerate() {
            let hit = policy.request(*key);
            hits += u64::from(hit);
            hit_bytes += u64::from(hit) * size(at);
            bytes += size(at);
        }
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        Ratios {
            of_requests: percent(hits, self.requests.len() as u64),
            of_bytes: percent(hit_bytes, bytes),
        }
    }

    /// Reads the trace `name`.
    pub(crate) fn read(name: &'static str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/traces").join(name);
        let file =
            BufReader::new(File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
        let (stem, packing) = name.rsplit_once('.').unwrap();
        let mut bytes = Vec::new();
        match packing {
            "gz" => flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap(),
            "xz" => lzma_rust2::XzReader::new(file, true).read_to_end(&mut bytes).unwrap(),
            "zst" => ruzstd::decoding::StreamingDecoder::new(file)
                .unwrap()
                .read_to_end(&mut bytes)
                .unwrap(),
            other => panic!("{name}: unknown compression {other}"),
        };
        let (title, format) = stem.rsplit_once('.').unwrap();
        let mut trace = Self { name: title, requests: Vec::new(), sizes: None, distinct: 0 };
        let mut numbers: HashMap<u64, u32> = HashMap::new();
        let mut request = |key: u64| {
            let next = numbers.len() as u32;
            trace.requests.push(*numbers.entry(key).or_insert(next));
        };
        match format {
            "be32" => words(&bytes).for_each(|word| request(u64::from(u32::from_be_bytes(word)))),
            "be64" => words(&bytes).for_each(|word| request(u64::from_be_bytes(word))),
            "arc" => {
                lines(&bytes).for_each(|line| (line[0]..line[0] + line[1]).for_each(&mut request))
            }
            "txt" if title == "cdn-sized" => {
                lines(&bytes).for_each(|line| request(line[1]));
                trace.sizes = Some(lines(&bytes).map(|line| line[2] as u32).collect());
            }
            "txt" => lines(&bytes).for_each(|line| request(line[0])),
            other => panic!("{name}: unknown format {other}"),
        }
        trace.distinct = numbers.len();
        trace
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}

/// The numbers of each line. A line with only a star is a mark, not a request.
fn lines(bytes: &[u8]) -> impl Iterator<Item = Vec<u64>> {
    let lines = str::from_utf8(bytes).unwrap().lines().filter(|line| *line != "*");
    lines.map(|line| line.split_whitespace().map(|number| number.parse().unwrap()).collect())
}
