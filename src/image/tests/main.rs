//! The image store as a whole, against archives of our own builder's, of other tools', and hostile ones.

mod hostile;
mod interrupted;
mod support;
mod tools;
mod trees;
