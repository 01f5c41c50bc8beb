//! The hash of a key: SipHash-1-3 with the directory's secret, so that an attacker who chooses keys
//! cannot choose buckets. It must stay the same, since words on disk hold a part of it.

use siphasher::sip::SipHasher13;

/// Hashes keys with the secret of one directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyHasher(SipHasher13);

impl KeyHasher {
    pub(crate) fn new(secret: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(secret))
    }

    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        self.0.hash(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_part_of_the_format() {
        let secret: [u8; 16] = std::array::from_fn(|i| i as u8);
        assert_eq!(KeyHasher::new(&secret).hash(b"key"), 0x3477_d32d_d117_98e1);
    }
}
