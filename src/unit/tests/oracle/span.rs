//! `systemd-analyze timespan`: what is accepted, how long it is, how it is printed.

use orlop_unit::value::{Span, format_span, parse_span};
use proptest::prelude::*;

use super::systemd_analyze;

/// Microseconds and text of those that systemd accepts, in order.
fn theirs(texts: &[String]) -> Vec<(u64, String)> {
    let mut words = vec!["timespan", "--"];
    words.extend(texts.iter().map(String::as_str));
    let output = systemd_analyze(&words);
    let mut out: Vec<(u64, String)> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        match key.trim() {
            "μs" => out.push((value.trim().parse().expect("a number"), String::new())),
            "Human" => {
                if let Some((_, text)) = out.last_mut() {
                    *text = value.trim().to_owned();
                }
            }
            _ => {}
        }
    }
    out
}

fn span() -> impl Strategy<Value = String> {
    let unit = prop::sample::select(vec![
        "", "us", "usec", "µs", "μs", "ms", "msec", "s", "sec", "second", "seconds", "m", "min",
        "minute", "minutes", "h", "hr", "hour", "hours", "d", "day", "days", "w", "week", "weeks",
        "M", "month", "months", "y", "year", "years", "secs", "parsec",
    ]);
    let number = prop_oneof![
        6 => (0u64..5000).prop_map(|n| n.to_string()),
        2 => "[0-9]{1,3}\\.[0-9]{1,8}",
        1 => "\\.[0-9]{1,3}",
        1 => "[+-]?[0-9]{1,20}\\.?",
    ];
    let gap = || prop::sample::select(vec!["", "", " ", "  "]);
    let part = (gap(), number, gap(), unit).prop_map(|(a, n, b, u)| format!("{a}{n}{b}{u}"));
    prop_oneof![
        20 => prop::collection::vec(part, 1..4).prop_map(|parts| parts.concat()),
        1 => prop::sample::select(vec!["infinity", " infinity ", "infinity5", "", " "]).prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_spans_are_as_long_to_both(texts in prop::collection::vec(span(), 100)) {
        let (taken, refused): (Vec<String>, Vec<String>) =
            texts.into_iter().partition(|text| parse_span(text).is_some());
        let answers = theirs(&taken);
        if answers.len() != taken.len() {
            let text = taken.iter().find(|text| theirs(std::slice::from_ref(*text)).is_empty());
            prop_assert!(false, "systemd refuses {:?}", text);
        }
        for (text, (us, human)) in taken.iter().zip(answers) {
            match parse_span(text) {
                Some(Span::Finite(span)) => {
                    prop_assert_eq!(u128::from(us), span.as_micros(), "{}", text);
                    prop_assert_eq!(format_span(us, 1), human, "{}", text);
                }
                _ => prop_assert_eq!(us, u64::MAX, "{}", text),
            }
        }
        if !refused.is_empty() && !theirs(&refused).is_empty() {
            let text = refused.iter().find(|text| !theirs(std::slice::from_ref(*text)).is_empty());
            prop_assert!(false, "systemd takes {:?}", text);
        }
    }
}
