//! Every configuration source to one Machine value, and its compilation to files and units.
