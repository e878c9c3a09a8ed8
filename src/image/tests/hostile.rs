//! Archives made to do harm, or damaged on the way: each is refused with a reason, and leaves the store as it was.
