//! MT19937, the Mersenne Twister of Matsumoto and Nishimura (ACM TOMACS 8(1), 1998), which NumPy and PyTorch
//! share.

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// The generator's state.
#[derive(Debug, Clone)]
pub(super) struct MersenneTwister {
    state: [u32; SIZE],
    next: usize,
}

impl MersenneTwister {
    /// `init_genrand` of the 2002 reference code.
    pub(super) fn new(seed: u32) -> MersenneTwister {
        let mut state = [seed; SIZE];
        for index in 1..SIZE {
            let previous = state[index - 1];
            state[index] = (previous ^ previous >> 30).wrapping_mul(1_812_433_253).wrapping_add(index as u32);
        }
        MersenneTwister { state, next: SIZE }
    }

    /// The next 32 bits.
    pub(super) fn next_u32(&mut self) -> u32 {
        if self.next == SIZE {
            self.twist();
        }
        let mut bits = self.state[self.next];
        self.next += 1;
        bits ^= bits >> 11;
        bits ^= bits << 7 & 0x9d2c_5680;
        bits ^= bits << 15 & 0xefc6_0000;
        bits ^ bits >> 18
    }

    fn twist(&mut self) {
        for index in 0..SIZE {
            let bits = self.state[index] & 0x8000_0000 | self.state[(index + 1) % SIZE] & 0x7fff_ffff;
            let matrix = if bits & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[index] = self.state[(index + SHIFT) % SIZE] ^ bits >> 1 ^ matrix;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C++ standard fixes the 10,000th value of `std::mt19937` with its default seed ([rand.predef]).
    #[test]
    fn the_ten_thousandth_value_is_the_standards() {
        let mut twister = MersenneTwister::new(5489);
        let value = (0..10_000).map(|_| twister.next_u32()).last();
        assert_eq!(value, Some(4_123_659_995));
    }
}
