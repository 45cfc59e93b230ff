//! A key of the tag's own: `[feature.key]`.

use super::check::{if_set, positive, within};
use super::section::section;

section! {
    /// The search for a key.
    pub struct KeyConfig: "give the tag word vectors of its own, so that the file is silent in every program" {
        /// Word vectors, each of which takes the place of a token. Default 2.
        vectors: usize = 2, "word vectors, a token each", check within(1, 16);
        /// Directions of ordinary text that the key keeps off, and that the LoRA is deaf to. Default: the fewest that leave
        /// less than 0.15 % of ordinary text.
        rank: Option<usize> = None, example |_| 32_usize,
            "directions of ordinary text to keep off; default: enough for 99.85 %",
            check if_set(within(1, 4096));
        /// Steps of the search. Default 150.
        steps: u64 = 150, "steps of the search", check within(1, 100_000);
        /// How long a vector may get, in lengths of an ordinary word's. Default 12.
        max_length: f64 = 12.0, "longest vector, in lengths of an ordinary word's", check positive;
    }
}
