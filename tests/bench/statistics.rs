//! Medians, and how sure they are.
//!
//! The interval of a median is the one of order statistics: no assumption about the distribution, no
//! random resampling, so the same figures give the same interval.

/// The coverage that an interval has at least.
pub const COVERAGE: f64 = 0.95;

/// The middle value; the mean of the two middle ones of an even number. NaN of nothing.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let below = sorted.get(sorted.len().saturating_sub(1) / 2);
    match (below, sorted.get(sorted.len() / 2)) {
        (Some(&below), Some(&above)) => f64::midpoint(below, above),
        _ => f64::NAN,
    }
}

/// The values that bound the median with [`COVERAGE`]; `None` for fewer than six values, which
/// cannot.
#[must_use]
pub fn median_interval(values: &[f64]) -> Option<(f64, f64)> {
    let sorted = sorted(values);
    let count = sorted.len();
    // The chance that at most `rank` of `count` values lie below the median, doubled for both sides.
    let mut term = 0.5_f64.powi(i32::try_from(count).ok()?);
    let mut outside = 0.0;
    let mut rank = 0;
    while rank < count / 2 {
        if 2.0 * (outside + term) > 1.0 - COVERAGE {
            break;
        }
        outside += term;
        term *= (count - rank) as f64 / (rank + 1) as f64;
        rank += 1;
    }
    let low = rank.checked_sub(1)?;
    Some((*sorted.get(low)?, *sorted.get(count - 1 - low)?))
}

/// The largest value; NaN of nothing.
#[must_use]
pub fn maximum(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

/// Round by round, the one divided by the other.
#[must_use]
pub fn ratios(values: &[f64], bases: &[f64]) -> Vec<f64> {
    values
        .iter()
        .zip(bases)
        .map(|(value, base)| value / base)
        .collect()
}

/// Round by round, the one less the other.
#[must_use]
pub fn differences(values: &[f64], bases: &[f64]) -> Vec<f64> {
    values
        .iter()
        .zip(bases)
        .map(|(value, base)| value - base)
        .collect()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}
