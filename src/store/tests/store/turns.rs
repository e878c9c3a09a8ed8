//! The lock and election services, and what probes ask over HTTP.

use std::time::Duration;

use orlop_store::proto::etcdserverpb::lease_client::LeaseClient;
use orlop_store::proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest};
use orlop_store::proto::v3electionpb::election_client::ElectionClient;
use orlop_store::proto::v3electionpb::{
    CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest,
};
use orlop_store::proto::v3lockpb::lock_client::LockClient;
use orlop_store::proto::v3lockpb::{LockRequest, UnlockRequest};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};

use crate::etcdctl::{Kind, Server};

const PATIENCE: Duration = Duration::from_secs(30);

async fn channel(server: &Server) -> Channel {
    Endpoint::from_shared(format!("http://{}", server.address))
        .expect("a URL")
        .connect()
        .await
        .expect("it listens")
}

async fn lease(channel: &Channel) -> i64 {
    let request = LeaseGrantRequest { ttl: 600, id: 0 };
    let granted = LeaseClient::new(channel.clone()).lease_grant(request).await;
    granted.expect("it is granted").into_inner().id
}

/// Does the same with our services and with etcd's; both must bear it out.
async fn take_turns(server: &Server) {
    let channel = channel(server).await;
    let mut locks = LockClient::new(channel.clone());
    let (first, second) = (lease(&channel).await, lease(&channel).await);
    let name = b"l".to_vec();
    let ask = |lease| LockRequest {
        name: name.clone(),
        lease,
    };
    let held = locks
        .lock(ask(first))
        .await
        .expect("it is free")
        .into_inner();
    assert_eq!(held.key, format!("l/{first:x}").into_bytes());
    let again = locks
        .lock(ask(first))
        .await
        .expect("it is held by the same lease");
    assert_eq!(again.into_inner().key, held.key);
    let waits = tokio::spawn({
        let (mut locks, ask) = (locks.clone(), ask(second));
        async move { locks.lock(ask).await }
    });
    let unlock = UnlockRequest { key: held.key };
    locks.unlock(unlock).await.expect("it was held");
    let next = timeout(PATIENCE, waits)
        .await
        .expect("it is free")
        .expect("no panic");
    assert_eq!(
        next.expect("it is its turn").into_inner().key,
        format!("l/{second:x}").into_bytes()
    );
    // A lease that ends gives its lock up.
    let revoke = LeaseRevokeRequest { id: second };
    LeaseClient::new(channel.clone())
        .lease_revoke(revoke)
        .await
        .expect("it was granted");
    timeout(PATIENCE, locks.lock(ask(first)))
        .await
        .expect("it is free")
        .expect("it is its turn");

    let mut elections = ElectionClient::new(channel.clone());
    let asked = LeaderRequest {
        name: b"e".to_vec(),
    };
    let none = elections
        .leader(asked.clone())
        .await
        .expect_err("no one leads");
    assert_eq!(none.message(), "election: no leader");
    let campaign = |lease, value: &str| CampaignRequest {
        name: b"e".to_vec(),
        lease,
        value: value.into(),
    };
    let third = lease(&channel).await;
    let leader = elections
        .campaign(campaign(first, "one"))
        .await
        .expect("no other one");
    // etcd answers only when there is a leader to tell of.
    let mut observed = elections
        .observe(asked.clone())
        .await
        .expect("anyone may")
        .into_inner();
    let leader = leader.into_inner().leader;
    let waits = tokio::spawn({
        let (mut elections, campaign) = (elections.clone(), campaign(third, "three"));
        async move { elections.campaign(campaign).await }
    });
    let proclaim = ProclaimRequest {
        leader: leader.clone(),
        value: b"uno".to_vec(),
    };
    elections
        .proclaim(proclaim.clone())
        .await
        .expect("it leads");
    let kv = elections
        .leader(asked)
        .await
        .expect("one leads")
        .into_inner()
        .kv;
    assert_eq!(kv.map(|kv| kv.value), Some(b"uno".to_vec()));
    elections
        .resign(ResignRequest { leader })
        .await
        .expect("it led");
    let next = timeout(PATIENCE, waits)
        .await
        .expect("no one else")
        .expect("no panic");
    next.expect("it is its turn");
    let refused = elections
        .proclaim(proclaim)
        .await
        .expect_err("it leads no more");
    assert_eq!(refused.message(), "election: not leader");
    loop {
        let seen = timeout(PATIENCE, observed.next())
            .await
            .expect("it is told");
        let seen = seen.expect("the stream goes on").expect("it is well");
        if seen.kv.is_some_and(|kv| kv.value == b"three") {
            break;
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn locks_and_elections_take_turns_as_etcds_do() {
    let directory = tempfile::tempdir().expect("a directory");
    for kind in [Kind::Etcd, Kind::Ours] {
        let server = Server::new(kind, directory.path().join(format!("{kind:?}")));
        take_turns(&server).await;
    }
}

#[test]
fn probes_are_answered() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::new(Kind::Ours, directory.path().join("ours"));
    for path in ["/livez", "/readyz"] {
        let answer = server.http(path);
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"),
            "{answer}"
        );
    }
    let metrics = server.http("/metrics");
    for line in [
        "\netcd_server_has_leader 1\n",
        "\netcd_server_is_leader 1\n",
        "\norlop_store_voters 1\n",
        "\n# TYPE etcd_mvcc_db_total_size_in_bytes gauge\n",
    ] {
        assert!(metrics.contains(line), "{line:?} in {metrics}");
    }
}
