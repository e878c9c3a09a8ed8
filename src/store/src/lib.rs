//! The clustered store: Raft, log, keyspace, leases, watches, and etcd's v3 face.
