//! Random choices that can be repeated.

/// Numbers from a seed (xorshift): good enough to choose moments.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// `$ORLOP_SEED`, or one by the clock; it is printed, to be given again.
    #[must_use]
    pub fn from_environment() -> Self {
        let given = std::env::var("ORLOP_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |now| now.as_secs())
        });
        println!("ORLOP_SEED={seed}");
        // Neighbouring seeds have little in common after the multiplication, and none is zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The upper half is the better one.
        (self.0 >> 16) % end
    }
}
