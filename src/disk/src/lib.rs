//! Partitions and filesystems of the data volume: look, plan, apply.
