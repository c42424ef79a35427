//! The medians and intervals that the benches print, against figures of the binomial distribution.

#[path = "bench/statistics.rs"]
mod statistics;

use statistics::{COVERAGE, differences, maximum, median, median_interval, ratios};

fn first(count: u32) -> Vec<f64> {
    // Not in order: the functions sort.
    (1..=count).rev().map(f64::from).collect()
}

#[test]
fn median_of_an_even_number_lies_between_the_middle_two() {
    assert_eq!(median(&first(5)), 3.0);
    assert_eq!(median(&first(6)), 3.5);
    assert!(median(&[]).is_nan());
}

#[test]
fn interval_is_that_of_the_tables_of_order_statistics() {
    assert_eq!(COVERAGE, 0.95);
    // 6 of 6: 96.9 %. 2 to 8 of 9: 96.1 %. 6 to 15 of 20: 95.9 %. 40 to 61 of 100: 96.5 %.
    assert_eq!(median_interval(&first(6)), Some((1.0, 6.0)));
    assert_eq!(median_interval(&first(9)), Some((2.0, 8.0)));
    assert_eq!(median_interval(&first(20)), Some((6.0, 15.0)));
    assert_eq!(median_interval(&first(100)), Some((40.0, 61.0)));
}

#[test]
fn five_values_are_too_few_for_an_interval() {
    assert_eq!(median_interval(&first(5)), None);
    assert_eq!(median_interval(&[]), None);
}

#[test]
fn rounds_are_compared_with_their_own_round() {
    assert_eq!(ratios(&[2.0, 9.0], &[1.0, 3.0]), [2.0, 3.0]);
    assert_eq!(differences(&[2.0, 9.0], &[1.0, 3.0]), [1.0, 6.0]);
    assert_eq!(maximum(&[1.0, 3.0, 2.0]), 3.0);
}
