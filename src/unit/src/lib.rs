//! Unit files, specifiers, the dependency graph and the job engine: pure.
