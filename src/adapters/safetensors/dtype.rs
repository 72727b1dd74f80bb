//! Types of elements, and the floating-point ones as numbers.

use std::fmt;

macro_rules! dtypes {
    ($($variant:ident = $name:literal: $bits:literal,)*) => {
        /// Type of a tensor's elements, as the format names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Dtype {
            $($variant,)*
        }

        impl Dtype {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Of one element.
            pub fn bits(self) -> u64 {
                match self {
                    $(Self::$variant => $bits,)*
                }
            }
        }
    };
}

dtypes! {
    F4 = "F4": 4,
    F6E2M3 = "F6_E2M3": 6,
    F6E3M2 = "F6_E3M2": 6,
    Bool = "BOOL": 8,
    U8 = "U8": 8,
    I8 = "I8": 8,
    F8E5M2 = "F8_E5M2": 8,
    F8E4M3 = "F8_E4M3": 8,
    F8E8M0 = "F8_E8M0": 8,
    I16 = "I16": 16,
    U16 = "U16": 16,
    F16 = "F16": 16,
    Bf16 = "BF16": 16,
    I32 = "I32": 32,
    U32 = "U32": 32,
    F32 = "F32": 32,
    F64 = "F64": 64,
    I64 = "I64": 64,
    U64 = "U64": 64,
    C64 = "C64": 64,
}

/// The types that adapters and base weights are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    F16,
    Bf16,
    F32,
}

impl Dtype {
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.name() == name)
    }

    pub fn float(self) -> Option<Float> {
        match self {
            Self::F16 => Some(Float::F16),
            Self::Bf16 => Some(Float::Bf16),
            Self::F32 => Some(Float::F32),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Float {
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
            Self::F32 => Dtype::F32,
        }
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// Appends the numbers, which are exact; a rest that is no whole element is left out.
    pub fn decode(self, bytes: &[u8], into: &mut Vec<f32>) {
        let halves = || bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair));
        match self {
            Self::F16 => into.extend(halves().map(from_f16)),
            Self::Bf16 => into.extend(halves().map(|bits| f32::from_bits(u32::from(bits) << 16))),
            Self::F32 => into.extend(bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four))),
        }
    }

    /// Rounded to the nearest, ties to even.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F16 => values.iter().flat_map(|value| to_f16(*value).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|value| to_bf16(*value).to_le_bytes()).collect(),
            Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }
}

/// 2^-24, the smallest number above zero that a half has.
const SMALLEST_F16: f32 = 1.0 / 16_777_216.0;

fn from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let (exponent, mantissa) = (u32::from(bits >> 10 & 0x1f), u32::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => (mantissa as f32 * SMALLEST_F16).to_bits(),
        0x1f => 0x7f80_0000 | mantissa << 13,
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

fn to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16 & 0x8000) as u16, bits & 0x7fff_ffff);
    sign | match magnitude {
        0x7f80_0001.. => 0x7e00,
        0x4780_0000.. => 0x7c00,
        // Rounding may carry into the exponent, up to infinity, which is as it should be.
        0x3880_0000.. => round_shift(magnitude - (112 << 23), 13) as u16,
        // Exact: a power of two.
        _ => (f32::from_bits(magnitude) / SMALLEST_F16).round_ties_even() as u16,
    }
}

fn to_bf16(value: f32) -> u16 {
    if value.is_nan() { 0x7fc0 } else { round_shift(value.to_bits(), 16) as u16 }
}

/// `bits >> by`, to the nearest, ties to even.
fn round_shift(bits: u32, by: u32) -> u32 {
    let (kept, rest, half) = (bits >> by, bits & ((1 << by) - 1), 1 << (by - 1));
    kept + u32::from(rest > half || (rest == half && kept & 1 == 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_lead_back_to_their_types() {
        assert!(Dtype::ALL.iter().all(|dtype| Dtype::named(dtype.name()) == Some(*dtype)));
        assert_eq!(Dtype::named("f32"), None);
    }

    #[test]
    fn every_half_is_itself_after_both_ways() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (from_f16(bits), f32::from_bits(u32::from(bits) << 16));
            assert!(to_f16(half) == bits || half.is_nan(), "{bits:04x}");
            assert!(to_bf16(brain) == bits || brain.is_nan(), "{bits:04x}");
        }
    }

    #[test]
    fn known_halves() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (0x0001, SMALLEST_F16), (0x3555, 0.333_251_95)]
        {
            assert_eq!(from_f16(bits), value);
        }
        assert_eq!(to_f16(65519.9), 0x7bff);
        assert_eq!(to_f16(65520.0), 0x7c00);
        assert_eq!(to_f16(SMALLEST_F16 / 2.0), 0);
        assert!(from_f16(to_f16(f32::NAN)).is_nan() && f32::from_bits(u32::from(to_bf16(f32::NAN)) << 16).is_nan());
    }

    proptest! {
        #[test]
        fn rounding_finds_the_nearest(value in -70000f32..70000.0) {
            for (rounded, near) in [
                (to_f16(value), from_f16 as fn(u16) -> f32),
                (to_bf16(value), |bits| f32::from_bits(u32::from(bits) << 16)),
            ] {
                let error = |bits: u16| (f64::from(near(bits)) - f64::from(value)).abs();
                for other in [rounded.wrapping_sub(1), rounded.wrapping_add(1)] {
                    let other = error(other);
                    prop_assert!(near(rounded).is_infinite() || other.is_nan() || error(rounded) <= other);
                }
            }
        }
    }
}
