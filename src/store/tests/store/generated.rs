//! The committed code for the wire's messages is what `proto/` says.

use std::path::{Path, PathBuf};

const FILES: [&str; 5] = [
    "etcdserverpb.rs",
    "grpc.health.v1.rs",
    "mvccpb.rs",
    "v3electionpb.rs",
    "v3lockpb.rs",
];

/// With `ORLOP_UPDATE_GENERATED=1` it writes the code anew instead of comparing.
#[test]
fn committed_code_is_current() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let update = std::env::var_os("ORLOP_UPDATE_GENERATED").is_some();
    let scratch = tempfile::tempdir()?;
    let committed = root.join("src/proto");
    let out: PathBuf = if update {
        committed.clone()
    } else {
        scratch.path().to_owned()
    };
    let proto = root.join("proto");
    tonic_prost_build::configure()
        .build_transport(false)
        .out_dir(&out)
        .compile_protos(
            &[
                proto.join("rpc.proto"),
                proto.join("health.proto"),
                proto.join("lock.proto"),
                proto.join("election.proto"),
            ],
            &[proto],
        )?;
    if !update {
        for file in FILES {
            let want = std::fs::read_to_string(out.join(file))?;
            let have = std::fs::read_to_string(committed.join(file))?;
            assert!(
                want == have,
                "src/proto/{file} is not what proto/ says: run this test with ORLOP_UPDATE_GENERATED=1"
            );
        }
    }
    Ok(())
}
