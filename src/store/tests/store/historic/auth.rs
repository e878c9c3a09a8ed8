//! Users and roles, of which there are none.

use orlop_store::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use orlop_store::proto::etcdserverpb::{HashKvRequest, StatusRequest};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use crate::etcdctl::{Kind, Server};

/// All that etcd's service `etcdserverpb.Auth` has.
const CALLS: [&str; 17] = [
    "AuthDisable",
    "AuthEnable",
    "AuthStatus",
    "Authenticate",
    "RoleAdd",
    "RoleDelete",
    "RoleGet",
    "RoleGrantPermission",
    "RoleList",
    "RoleRevokePermission",
    "UserAdd",
    "UserChangePassword",
    "UserDelete",
    "UserGet",
    "UserGrantRole",
    "UserList",
    "UserRevokeRole",
];

/// The last entry of the log, the last one that is applied, the revision and the hash of the keyspace.
async fn standing(channel: &Channel) -> (u64, u64, i64, u32) {
    let mut client = MaintenanceClient::new(channel.clone());
    let status = client.status(StatusRequest {}).await;
    let status = status.expect("it answers").into_inner();
    let hash = client.hash_kv(HashKvRequest { revision: 0 }).await;
    let hash = hash.expect("it answers").into_inner();
    (
        status.raft_index,
        status.raft_applied_index,
        hash.header.map_or(0, |h| h.revision),
        hash.hash,
    )
}

#[tokio::test(flavor = "current_thread")]
async fn issue_14571_nothing_about_users_and_roles_reaches_the_log() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::new(Kind::Ours, directory.path().join("ours"));
    server.run(&["put", "k", "v"], "");
    let channel = Endpoint::from_shared(format!("http://{}", server.address))
        .expect("a URL")
        .connect()
        .await
        .expect("it listens");
    let before = standing(&channel).await;
    for call in CALLS {
        let path = format!("/etcdserverpb.Auth/{call}");
        let path = PathAndQuery::try_from(path).expect("a path");
        let mut client = Grpc::new(channel.clone());
        client.ready().await.expect("it listens");
        // Every field of every request may be left out.
        let codec = ProstCodec::<StatusRequest, StatusRequest>::default();
        let answer = client.unary(Request::new(StatusRequest {}), path, codec);
        let refused = answer.await.expect_err("there are none");
        assert_eq!(refused.code(), Code::Unimplemented, "{call}");
        assert!(refused.message().contains("not supported"), "{refused}");
    }
    for words in [
        &["user", "add", "root:secret"][..],
        &["role", "add", "one"],
        &["auth", "enable"],
        &["get", "k", "--user=root:secret"],
    ] {
        let said = server.run(words, "");
        let errors = String::from_utf8_lossy(&said.stderr);
        assert!(!said.status.success(), "{words:?}");
        assert!(errors.contains("not supported"), "{words:?}: {errors}");
    }
    assert_eq!(standing(&channel).await, before);
}
