//! The log: writer, reader and output formats.
