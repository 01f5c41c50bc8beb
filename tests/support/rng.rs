//! A pseudo-random generator with a seed, so that runs can be repeated.

/// SplitMix64: small, good enough, and with the same results everywhere.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `n - 1`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// The seed of this run: the value of `KEEPWARM_SEED`, or a random one. It is printed, so that a
/// failure can be repeated.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("KEEPWARM_SEED").ok();
    let seed = given.map_or_else(
        || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8),
        |text| text.parse().expect("KEEPWARM_SEED is a number"),
    );
    println!("KEEPWARM_SEED={seed}");
    seed
}
