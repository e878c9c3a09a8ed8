//! What a fuzzer calls: hostile bytes go in, and whatever holds of every input is checked.
//!
//! `fuzz/` wraps these for libFuzzer, the tests beside this file drive them with generated input.

use orlop_unit::value::{format_span, parse_bytes, parse_span};
use orlop_unit::{
    Calendar, Graph, Installer, Jobs, Loader, MemoryStore, Mode, Presets, Request, Severity,
    SpecifierContext, UnitName, parse_environment_file,
};

/// The kinds of files that a text is read as.
const FILES: [&str; 8] = [
    "a.service",
    "a@.service",
    "a.target",
    "a.timer",
    "a.socket",
    "a.mount",
    "a.path",
    "a.slice",
];

/// A unit file, read as each kind, by the supervisor and as written; then started, stopped, enabled and disabled.
pub(crate) fn unit_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let context = SpecifierContext::default();
    for file in FILES.into_iter().chain(["a.container"]) {
        let store = MemoryStore::new().file(&format!("/u/{file}"), &text);
        let loader = Loader::new(&["/u"], &store, &context);
        let name = UnitName::parse(&file.replace("a@.", "a@b.")).expect("a name");
        let strict = loader.load(&name);
        let lenient = Loader::new(&["/u"], &store, &context)
            .reading_all()
            .load(&name);
        assert!(strict.unit.is_none() || lenient.unit.is_some());
        let lines = u32::try_from(text.split('\n').count()).expect("lines");
        for problem in &lenient.problems {
            assert!(problem.line <= lines, "{problem}");
            assert!(!problem.message.contains('\n'), "{problem:?}");
        }
        let failed = |problems: &[orlop_unit::Problem]| {
            problems.iter().any(|p| p.severity == Severity::Error)
        };
        assert_eq!(
            lenient.unit.is_none(),
            failed(&lenient.problems) || lenient.masked
        );
        let installer = Installer::new(&loader, "/etc/systemd/system");
        let _ = installer.enable(std::slice::from_ref(&name), false);
        let _ = installer.state(&name);

        let (mut graph, mut jobs) = (Graph::new(), Jobs::new());
        let all = Loader::new(&["/u"], &store, &context).reading_all();
        let id = graph.load(&name, &mut |name| all.load(name));
        for request in [Request::Start, Request::Restart, Request::Stop] {
            if jobs.request(&graph, request, id, Mode::Replace).is_err() {
                continue;
            }
            // More steps than units and kinds of steps would be something done twice.
            for _ in 0..graph.len().saturating_mul(4) {
                let Some(run) = jobs.next_runnable(&graph) else {
                    break;
                };
                let state = match run.action {
                    orlop_unit::Action::Stop { .. } => orlop_unit::ActiveState::Inactive,
                    _ => orlop_unit::ActiveState::Active,
                };
                graph.set_state(run.unit, state);
                jobs.finished(&graph, run.job, orlop_unit::Outcome::Done);
            }
            assert!(jobs.is_empty(), "{:?}", jobs.iter().collect::<Vec<_>>());
        }
    }
}

/// A calendar expression: its normal form means the same, and moments go forward.
pub(crate) fn calendar(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(calendar) = Calendar::parse(&text) else {
        return;
    };
    let normal = calendar.to_string();
    let again = Calendar::parse(&normal).expect("its normal form is an expression");
    assert_eq!(again.to_string(), normal);
    let mut last_us = u64::try_from(bytes.len())
        .unwrap_or(0)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    last_us %= 7_258_118_400_000_000;
    for _ in 0..4 {
        let next_us = calendar.next_after(last_us);
        assert_eq!(next_us, again.next_after(last_us));
        match next_us {
            Some(next_us) => {
                assert!(next_us > last_us);
                last_us = next_us;
            }
            None => return,
        }
    }
}

/// Time spans, sizes, names, presets, environment files.
pub(crate) fn values(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(orlop_unit::value::Span::Finite(span)) = parse_span(&text) {
        let us = u64::try_from(span.as_micros()).expect("spans are counted in a u64");
        let shown = format_span(us, 1);
        let again = parse_span(&shown).expect("what is printed can be read");
        assert_eq!(again, orlop_unit::value::Span::Finite(span), "{shown}");
    }
    let _ = parse_bytes(&text);
    let _ = parse_environment_file(&text);
    let mut presets = Presets::default();
    let _ = presets.add(&text);
    if let Ok(name) = UnitName::parse(&text) {
        assert!(name.as_str().len() <= 255 && !name.as_str().contains('/'));
        let _ = presets.decide(&name);
    }
    if let Some(path) = orlop_unit::unescape_path(&text) {
        assert!(path.starts_with('/'));
    }
}
