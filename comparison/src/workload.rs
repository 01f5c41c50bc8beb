//! The workload: the keys, values and orders, the same for every contender.

use fastrand::Rng;

/// The seed of all pseudo-random numbers, so that every run is the same.
pub(crate) const SEED: u64 = 0x6b65_6570_7761_726d;

/// A number of entries and the length of their values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) name: &'static str,
    pub(crate) entries: u32,
    pub(crate) len: usize,
}

impl Size {
    pub(crate) const ALL: [Self; 3] = [
        Self { name: "100 B", entries: 1_000_000, len: 100 },
        Self { name: "1 KiB", entries: 300_000, len: 1 << 10 },
        Self { name: "16 KiB", entries: 30_000, len: 16 << 10 },
    ];

    /// The total bytes of all keys and values.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.entries) * (KEY_LEN + self.len) as u64
    }
}

pub(crate) const KEY_LEN: usize = KEY.len();
const KEY: [u8; 20] = *b"user:0000000:profile";
const DIGITS: std::ops::Range<usize> = 5..12;

/// The key of an entry: `user:0123456:profile`. Built for each use, because a million stored
/// strings would cost a cache miss each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key([u8; KEY_LEN]);

impl Key {
    pub(crate) fn of(id: u32) -> Self {
        let (mut key, mut rest) = (KEY, id);
        for digit in key[DIGITS].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        debug_assert_eq!(rest, 0, "seven digits hold every id");
        Self(key)
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap()
    }
}

/// Values of one length. A value starts with its id and version; the rest is pseudo-random, so that
/// it is incompressible.
#[derive(Debug)]
pub(crate) struct Values {
    len: usize,
    noise: Vec<u64>,
}

const WORD: usize = 8;

impl Values {
    pub(crate) fn new(len: usize) -> Self {
        assert!(len >= 4 * WORD, "a value has room for its id, its version and noise");
        let mut rng = Rng::with_seed(SEED);
        Self { len, noise: (0..len.div_ceil(WORD)).map(|_| rng.u64(..)).collect() }
    }

    /// The length of each value.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Writes version `version` of the value of `id`.
    pub(crate) fn write(&self, id: u32, version: u64, value: &mut Vec<u8>) {
        value.resize(self.len, 0);
        let mask = mask(id, version);
        let mut words = value.chunks_exact_mut(WORD);
        for (word, noise) in (&mut words).zip(&self.noise) {
            word.copy_from_slice(&(noise ^ mask).to_le_bytes());
        }
        let rest = words.into_remainder();
        let last = (self.noise[self.noise.len() - 1] ^ mask).to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
        value[..WORD].copy_from_slice(&u64::from(id).to_le_bytes());
        value[WORD..2 * WORD].copy_from_slice(&version.to_le_bytes());
    }

    /// The version of `value`, if it is a value of `id`. Checks the length, the id, and two words
    /// of the noise, one of them the last. Takes the same time for every outcome.
    pub(crate) fn version(&self, id: u32, value: &[u8]) -> Option<u64> {
        let word = |at: usize| {
            value
                .get(at * WORD..)
                .and_then(<[u8]>::first_chunk)
                .map_or(0, |w| u64::from_le_bytes(*w))
        };
        let (version, last) = (word(1), self.len / WORD - 1);
        let (mask, within) = (mask(id, version), 2 + id as usize % (last - 1));
        let fits = (value.len() == self.len)
            & (word(0) == u64::from(id))
            & (word(last) == self.noise[last] ^ mask)
            & (word(within) == self.noise[within] ^ mask);
        fits.then_some(version)
    }
}

/// SplitMix64's finisher.
fn mask(id: u32, version: u64) -> u64 {
    let mut z = (u64::from(id) ^ version.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// All ids once, in a pseudo-random order that depends on `salt`.
pub(crate) fn shuffled(entries: u32, salt: u64) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..entries).collect();
    Rng::with_seed(SEED ^ salt << 8).shuffle(&mut ids);
    ids
}

/// `count` uniformly drawn ids.
pub(crate) fn uniform(entries: u32, count: usize) -> Vec<u32> {
    let mut rng = Rng::with_seed(SEED ^ 1);
    (0..count).map(|_| rng.u32(..entries)).collect()
}

/// `count` ids by Zipf's law: the probability of rank r is proportional to 1 / r^exponent. Ranks
/// are assigned to ids pseudo-randomly, so that popular ids are not adjacent.
pub(crate) fn zipf(entries: u32, exponent: f64, count: usize) -> Vec<u32> {
    let mut total = 0.0;
    let sums: Vec<f64> = (1..=entries)
        .map(|rank| {
            total += f64::from(rank).powf(-exponent);
            total
        })
        .collect();
    let ids = shuffled(entries, 0);
    let mut rng = Rng::with_seed(SEED ^ 2);
    (0..count)
        .map(|_| {
            let drawn = rng.f64() * total;
            ids[sums.partition_point(|sum| *sum <= drawn).min(ids.len() - 1)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_their_ids() {
        assert_eq!(Key::of(1_234_567).as_str(), "user:1234567:profile");
        assert_eq!(Key::of(42).as_str(), "user:0000042:profile");
        assert!(Key::of(99).as_str() < Key::of(100).as_str());
    }

    #[test]
    fn a_value_identifies_its_id_and_version() {
        for len in [100, 1 << 10, 16 << 10] {
            let values = Values::new(len);
            let mut value = Vec::new();
            values.write(7, 3, &mut value);
            assert_eq!(value.len(), len);
            assert_eq!(values.version(7, &value), Some(3));
            assert_eq!(values.version(8, &value), None, "another id");
            assert_eq!(values.version(7, &value[..len - 1]), None, "truncated");
            assert_eq!(values.version(7, &[]), None, "empty");
            for at in [0, 8, 8 * (2 + 7 % (len / 8 - 2)), len / 8 * 8 - 1] {
                let mut damaged = value.clone();
                damaged[at] ^= 1;
                assert_eq!(values.version(7, &damaged), None, "damaged at {at} of {len}");
            }
        }
    }

    #[test]
    fn versions_of_a_value_differ_in_almost_all_bytes() {
        let values = Values::new(100);
        let (mut one, mut other) = (Vec::new(), Vec::new());
        values.write(1, 1, &mut one);
        values.write(1, 2, &mut other);
        let same = one[16..].iter().zip(&other[16..]).filter(|(a, b)| a == b).count();
        assert!(same < 10, "{same} bytes of 84 are the same");
    }

    #[test]
    fn a_shuffled_order_contains_each_id_once() {
        let mut ids = shuffled(1000, 1);
        assert_ne!(ids, (0..1000).collect::<Vec<_>>());
        assert_ne!(ids, shuffled(1000, 2));
        ids.sort_unstable();
        assert_eq!(ids, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn uniform_draws_are_evenly_distributed() {
        let mut counts = [0u32; 10];
        uniform(1000, 100_000).iter().for_each(|id| counts[*id as usize / 100] += 1);
        assert!(counts.iter().all(|c| (9_500..10_500).contains(c)), "{counts:?}");
    }

    #[test]
    fn zipf_draws_follow_zipfs_law() {
        let (entries, draws) = (1000, 1_000_000);
        let mut counts = vec![0u32; entries as usize];
        zipf(entries, 0.99, draws).iter().for_each(|id| counts[*id as usize] += 1);
        let ids = shuffled(entries, 0);
        let total: f64 = (1..=entries).map(|rank| f64::from(rank).powf(-0.99)).sum();
        for rank in [1u32, 2, 10, 100] {
            let wanted = draws as f64 * f64::from(rank).powf(-0.99) / total;
            let got = f64::from(counts[ids[rank as usize - 1] as usize]);
            assert!((got / wanted - 1.0).abs() < 0.1, "rank {rank}: {got} of {wanted}");
        }
        assert!(counts.iter().all(|c| *c > 0), "every id is drawn at least once");
    }
}
