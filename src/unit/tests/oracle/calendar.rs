//! `systemd-analyze calendar`: what is accepted, the normal form, and the next moments.

use orlop_unit::{Calendar, Civil};
use proptest::prelude::*;

use super::systemd_analyze;

const ITERATIONS: usize = 4;

/// What systemd says of one expression: the normal form and the moments.
type Verdict = (String, Vec<String>);

/// The verdicts on the expressions that systemd accepts, in order.
fn theirs(expressions: &[String], base: &str) -> Vec<Verdict> {
    let iterations = format!("--iterations={ITERATIONS}");
    let base = format!("--base-time={base}");
    let mut words = vec!["calendar", &iterations, &base, "--"];
    words.extend(expressions.iter().map(String::as_str));
    let output = systemd_analyze(&words);
    let mut verdicts: Vec<Verdict> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((key, value)) = line.split_once(": ") else {
            continue;
        };
        let key = key.trim();
        if key == "Normalized form" {
            verdicts.push((value.to_owned(), Vec::new()));
        } else if (key == "Next elapse" || key.starts_with("Iter."))
            && value != "never"
            && let Some((_, moments)) = verdicts.last_mut()
        {
            moments.push(value.to_owned());
        }
    }
    verdicts
}

fn ours(calendar: &Calendar, base_us: u64) -> Verdict {
    let mut last_us = base_us;
    let moments = std::iter::from_fn(|| {
        last_us = calendar.next_after(last_us)?;
        Some(Civil::from_us(last_us).to_string())
    });
    (calendar.to_string(), moments.take(ITERATIONS).collect())
}

/// A list of a field whose values are mostly, not always, in range.
fn list(low: u32, high: u32) -> impl Strategy<Value = String> {
    let value = move || low..high + 1;
    let item = prop_oneof![
        6 => value().prop_map(|a| a.to_string()),
        2 => value().prop_map(|a| format!("{a:02}")),
        // systemd 252 takes `*:3..3` and refuses `*:*:3..3`; ours takes both, so neither is made here.
        3 => (value(), value()).prop_filter("a range", |(a, b)| a != b)
            .prop_map(|(a, b)| format!("{}..{}", a.min(b), a.max(b))),
        3 => (value(), 0u32..9).prop_map(|(a, r)| format!("{a}/{r}")),
        2 => (value(), value(), 1u32..9).prop_map(|(a, b, r)| format!("{}..{}/{r}", a.min(b), a.max(b))),
        1 => Just((high + 1).to_string()),
        1 => (value(), value()).prop_filter("a range", |(a, b)| a != b).prop_map(|(a, b)| format!("{a}..{b}")),
    ];
    prop_oneof![
        4 => Just("*".to_owned()),
        8 => prop::collection::vec(item, 1..4).prop_map(|items| items.join(",")),
    ]
}

fn seconds() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => list(0, 59),
        1 => (0u32..60, 0u32..10_000_000, 0u32..3).prop_map(|(s, f, r)| format!("{s}.{f}/{r}")),
        1 => (0u32..30, 0u32..100).prop_map(|(s, f)| format!("{s}.{f}..{}.{f}/1.5", s + 20)),
        1 => "[0-9]{1,2}\\.[0-9]{1,8}",
    ]
}

fn weekdays() -> impl Strategy<Value = String> {
    let day = || {
        prop::sample::select(vec![
            "Mon",
            "tue",
            "Wednesday",
            "THU",
            "Fri",
            "Saturday",
            "Sun",
        ])
    };
    let item = prop_oneof![
        3 => day().prop_map(str::to_owned),
        1 => (day(), day(), prop::sample::select(vec!["..", "-"])).prop_map(|(a, b, to)| format!("{a}{to}{b}")),
    ];
    (
        prop::collection::vec(item, 1..4),
        prop::sample::select(vec!["", "", "", ","]),
    )
        .prop_map(|(items, end)| items.join(",") + end)
}

fn expression() -> impl Strategy<Value = String> {
    let year = prop_oneof![
        3 => Just("*".to_owned()),
        1 => list(2024, 2040),
        1 => list(60, 99),
    ];
    // systemd 252 takes `~28` alone, but as the second of a list no more than `~25`, as the third `~22`; ours are all
    // days that every month has, so only single items are compared.
    let day = || {
        prop_oneof![
            3 => list(1, 31).prop_map(|days| format!("-{days}")),
            1 => list(1, 28).prop_map(|days| format!("~{}", days.split(',').next().unwrap_or("*"))),
        ]
    };
    let date = prop_oneof![
        2 => (year, list(1, 12), day()).prop_map(|(y, m, d)| format!("{y}-{m}{d}")),
        1 => (list(1, 12), day()).prop_map(|(m, d)| format!("{m}{d}")),
    ];
    let time = prop_oneof![
        2 => (list(0, 23), list(0, 59)).prop_map(|(h, m)| format!("{h}:{m}")),
        3 => (list(0, 23), list(0, 59), seconds()).prop_map(|(h, m, s)| format!("{h}:{m}:{s}")),
    ];
    let built = (
        prop::option::of(weekdays()),
        prop::option::of(date),
        prop::option::weighted(0.7, time),
        prop::sample::select(vec!["", "", "", " UTC", " utc"]),
    )
        .prop_map(|(w, d, t, zone)| {
            let parts: Vec<String> = [w, d, t].into_iter().flatten().collect();
            parts.join(" ") + zone
        });
    prop_oneof![
        12 => built,
        1 => prop::sample::select(vec![
            "minutely", "hourly", "Daily", "weekly", "monthly", "quarterly", "semiannually",
            "semi-annually", "biannually", "bi-annually", "yearly", "annually", "anually", "weekly UTC", "fortnightly",
        ]).prop_map(str::to_owned),
        1 => (0u64..4_000_000_000).prop_map(|s| format!("@{s}")),
        // A zone's name after a space would be known there, so no letters but those of weekdays and UTC.
        2 => "([0-9*,./:~ -]|\\.\\.|Mon|Fri| UTC){1,16}",
    ]
}

/// Whether the difference lies with systemd, which at times steps over a month when a repetition runs over the end of
/// the year: asked from just before our moment, it must name that one itself.
fn steps_over(
    text: &str,
    ours: &Verdict,
    theirs: &Verdict,
    calendar: &Calendar,
    base_us: u64,
) -> bool {
    let Some(index) = ours.1.iter().zip(&theirs.1).position(|(a, b)| a != b) else {
        return false;
    };
    let mut moment_us = base_us;
    for _ in 0..=index {
        let Some(next_us) = calendar.next_after(moment_us) else {
            return false;
        };
        moment_us = next_us;
    }
    let just_before = Civil::from_us(moment_us.saturating_sub(1_000_000)).to_string();
    let asked = super::calendar::theirs(&[text.to_owned()], &just_before);
    ours.0 == theirs.0
        && asked.first().and_then(|(_, moments)| moments.first()) == ours.1.get(index)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_expressions_mean_the_same_to_both(
        expressions in prop::collection::vec(expression(), 80),
        base_s in 1_700_000_000u64..2_200_000_000,
    ) {
        let base_us = base_s * 1_000_000;
        let base = Civil::from_us(base_us).to_string();
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        for text in expressions {
            match Calendar::parse(&text) {
                Ok(calendar) => taken.push((text, calendar)),
                Err(error) => refused.push((text, error)),
            }
        }
        let texts: Vec<String> = taken.iter().map(|(text, _)| text.clone()).collect();
        let verdicts = theirs(&texts, &base);
        if verdicts.len() != taken.len() {
            let text = texts.iter().find(|text| theirs(std::slice::from_ref(*text), &base).is_empty());
            prop_assert!(false, "systemd refuses {:?}", text);
        }
        for ((text, calendar), verdict) in taken.iter().zip(verdicts) {
            let mine = ours(calendar, base_us);
            if mine != verdict && !steps_over(text, &mine, &verdict, calendar, base_us) {
                prop_assert_eq!(mine, verdict, "{} from {}", text, base);
            }
        }
        let texts: Vec<String> = refused.iter().map(|(text, _)| text.clone()).collect();
        if !texts.is_empty() && !theirs(&texts, &base).is_empty() {
            let found = refused.iter().find(|(text, _)| !theirs(std::slice::from_ref(text), &base).is_empty());
            prop_assert!(false, "systemd takes {:?}", found);
        }
    }
}
