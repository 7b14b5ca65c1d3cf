//! Sums none of whose digits is lost.
//!
//! A double is an integer times a power of two, and so is a product of two. Integers are added exactly; so each part
//! of a sum is the integer sum of what lies in one range of powers. Ordinary weights lie in one or two ranges.
//!
//! Knows numbers, and not what they count.
//!
//! Invariant: a part is the sum of what is in it now, so it is positive, and goes with the last of it.

use smallvec::SmallVec;

/// Powers of two in a range. A product of a double and a single has 77 binary digits, moved by 15 at most; as many
/// as a `u32` counts of them fit below the 127 of a part.
const RANGE: i32 = 16;

/// A sum of products of doubles that are not negative.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Exact {
    /// By range, the lowest first.
    parts: SmallVec<[(i32, u128); 1]>,
}

impl Exact {
    /// Adds a product.
    pub(super) fn add(&mut self, weight: f64, times: f32) {
        let Some((range, amount)) = product(weight, times) else {
            return;
        };
        match self.parts.binary_search_by_key(&range, |part| part.0) {
            Ok(at) => self.parts[at].1 += amount,
            Err(at) => self.parts.insert(at, (range, amount)),
        }
    }

    /// Takes out a product that was added.
    pub(super) fn remove(&mut self, weight: f64, times: f32) {
        let Some((range, amount)) = product(weight, times) else {
            return;
        };
        let found = self.parts.binary_search_by_key(&range, |part| part.0);
        debug_assert!(found.is_ok(), "taken out, yet never put in");
        if let Ok(at) = found {
            let part = &mut self.parts[at].1;
            debug_assert!(*part >= amount, "more is taken out than was put in");
            *part = part.saturating_sub(amount);
            if *part == 0 {
                self.parts.remove(at);
            }
        }
    }

    /// This sum divided by another, which is about as large or larger; `None` where that one is nothing.
    pub(super) fn over(&self, other: &Self) -> Option<f64> {
        let (top, _) = other.parts.last()?;
        Some(self.beside(*top) / other.beside(*top))
    }

    /// The sum in units of a range: what is far below it is nothing beside it.
    #[allow(
        clippy::cast_precision_loss,
        reason = "a quotient needs no more digits"
    )]
    fn beside(&self, range: i32) -> f64 {
        let scaled = |part: &(i32, u128)| part.1 as f64 * 2f64.powi((part.0 - range) * RANGE);
        self.parts.iter().map(scaled).sum()
    }
}

/// A product as a range and what it is in units of it; `None` for nothing.
fn product(weight: f64, times: f32) -> Option<(i32, u128)> {
    let (left, left_power) = integer(weight)?;
    let (right, right_power) = integer(f64::from(times))?;
    let (digits, power) = (
        u128::from(left) * u128::from(right),
        left_power + right_power,
    );
    let shift = power.rem_euclid(RANGE).unsigned_abs();
    Some((power.div_euclid(RANGE), digits << shift))
}

/// A double as an odd integer and the power of two that it is multiplied with; `None` for what is not a positive
/// number.
fn integer(number: f64) -> Option<(u64, i32)> {
    if !(number.is_finite() && number > 0.0) {
        return None;
    }
    let bits = number.to_bits();
    let exponent = i32::try_from(bits >> 52).ok()?;
    let fraction = bits & ((1 << 52) - 1);
    let (digits, power) = if exponent == 0 {
        (fraction, -1074)
    } else {
        (fraction | 1 << 52, exponent - 1075)
    };
    let zeros = digits.trailing_zeros();
    Some((digits >> zeros, power + i32::try_from(zeros).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_weights_take_one_part() {
        let mut sum = Exact::default();
        for weight in 1..1000 {
            sum.add(f64::from(weight), 1.0);
        }
        assert_eq!(sum.parts.len(), 1);
        assert_eq!(sum.over(&sum), Some(1.0));
    }

    #[test]
    fn as_many_of_the_longest_products_as_are_counted_fit() {
        let (digits, shift) = (
            u128::from((1u64 << 53) - 1) * u128::from((1u32 << 24) - 1),
            RANGE - 1,
        );
        assert!(
            (digits << shift)
                .checked_mul(u128::from(u32::MAX))
                .is_some()
        );
    }

    #[test]
    fn what_is_not_a_positive_number_is_nothing() {
        let mut sum = Exact::default();
        for nothing in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY] {
            sum.add(nothing, 1.0);
            sum.remove(nothing, 1.0);
        }
        assert_eq!(sum, Exact::default());
        assert_eq!(sum.over(&sum), None);
    }

    proptest! {
        #[test]
        fn a_double_is_an_integer_times_a_power_of_two(number in proptest::num::f64::POSITIVE) {
            let (digits, power) = integer(number).unwrap();
            prop_assert_eq!(digits % 2, 1);
            // In two steps, or the power alone would be out of range.
            let half = power / 2;
            prop_assert_eq!(digits as f64 * 2f64.powi(half) * 2f64.powi(power - half), number);
        }
    }
}
