//! Long trials of the real binary from a printed seed; a few turns of each run with the tests.

mod edits;
mod kill;
mod prunes;
mod registry;

pub use edits::edits;
pub use kill::kill;
pub use prunes::prunes;
pub use registry::{Tally, registry};

/// How long a trial is, and where its chances come from.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// Turns.
    pub count: u64,
    /// The same seed makes the same decisions.
    pub seed: u64,
    /// Says now and then how far it is.
    pub is_told: bool,
}

impl Trial {
    /// Says how to do it again, and how far it is.
    pub fn tell(&self, turn: u64) {
        if turn == 0 {
            println!("seed {}", self.seed);
        } else if self.is_told && turn.is_multiple_of(50) {
            println!("{turn} of {}", self.count);
        }
    }
}

/// Chances from a seed (splitmix64).
#[derive(Debug)]
pub struct Chance(pub u64);

impl Chance {
    /// Returns any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Returns a number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.any() % end.max(1)
    }

    /// Returns one of several.
    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// Returns a part of a whole, from 0 to 1.
    pub fn part(&mut self) -> f64 {
        self.below(1 << 20) as f64 / (1 << 20) as f64
    }
}
