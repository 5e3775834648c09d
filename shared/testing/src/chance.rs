//! Chance that is the same in every run.

/// Numbers that look like chance, and are the same each time.
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// The numbers that this one leads to.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next, from 0 on and less than this.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}
