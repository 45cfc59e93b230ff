//! What an embedding is.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use strata_model::{Embedding, counted};

use super::Line;

/// As JSON, and as lines.
pub fn describe(path: &Path) -> Result<(Value, Vec<Line>)> {
    let Embedding { word, key, second } = Embedding::read(path, None)?;
    let models = match (key.channels(), &second) {
        (_, Some(_)) => {
            "Stable Diffusion XL; its vectors for the first text encoder fit Stable Diffusion 1.x"
        }
        (768, None) => "Stable Diffusion 1.x",
        (1024, None) => "Stable Diffusion 2.x",
        _ => "none of the known models",
    };
    let mut vectors = format!("{} of {} channels", counted(key.count(), "vector"), key.channels());
    if let Some(second) = &second {
        let count = counted(second.count(), "vector");
        vectors += &format!(", and {count} of {} for a second text encoder", second.channels());
    }
    let lines = vec![
        ("embedding", path.display().to_string()),
        ("word", word.clone()),
        ("vectors", vectors),
        ("made for", models.to_owned()),
        (
            "Strata",
            format!(
                "puts the vectors in place of {word:?} in prompts, `strata generate --embedding FILE[=WORD]`, and in captions, \
                 embeddings = [\"FILE\"]"
            ),
        ),
    ];
    let value = json!({
        "kind": "embedding",
        "path": path,
        "word": word,
        "vectors": key.count(),
        "channels": key.channels(),
        "second": second.map(|second| json!({"vectors": second.count(), "channels": second.channels()})),
    });
    Ok((value, lines))
}
