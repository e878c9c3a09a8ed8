//! The fuzz targets, driven with input that looks like what they read.

mod targets;

use proptest::prelude::*;

/// Bytes in which some are the lengths and tags of fields.
fn records() -> impl Strategy<Value = Vec<u8>> {
    let record = (0..7u8, prop::collection::vec(any::<u8>(), 0..40), 0..80u8).prop_map(
        |(tag, value, length)| {
            let mut bytes = vec![0; 40];
            bytes[4] = 40 + length;
            bytes[16] = length;
            bytes.extend_from_slice(&[tag, 0, value.len() as u8, 0]);
            bytes.extend_from_slice(&value);
            bytes
        },
    );
    prop::collection::vec(record, 0..6).prop_map(|records| records.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn segments(bytes in prop_oneof![3 => records(), 1 => prop::collection::vec(any::<u8>(), 0..400)]) {
        targets::segment(&bytes);
    }

    #[test]
    fn texts(text in "(<[0-9]{1,3}>|[0-9]{1,4},[0-9]{1,4},[0-9]{1,4},-;(orlop\\[1\\]: )?)?([a-z.]{0,8}(: )?|\\\\x4|[0-9:-]|\\n| ago){0,12}") {
        targets::text(text.as_bytes());
    }
}
