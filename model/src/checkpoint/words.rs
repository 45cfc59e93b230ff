//! Words that have vectors of their own with a model.

use std::sync::Arc;

use super::Checkpoint;
use crate::{Embedding, Error, Result, Tag};

impl Checkpoint {
    /// Gives words vectors, which then stand for them in every prompt and caption that is read with this model.
    ///
    /// # Errors
    /// Vectors are not as wide as the model's, or are more than a chunk of a prompt holds; a word has two embeddings, or is none
    /// that could be found in a text ([`Tag::new`]); or the text encoder's configuration or the tokenizer cannot be read.
    pub fn add_embeddings(&mut self, embeddings: impl IntoIterator<Item = Embedding>) -> Result<()> {
        let mut embeddings = embeddings.into_iter().peekable();
        if embeddings.peek().is_none() {
            return Ok(());
        }
        let (width, mut tokenizer) = (self.text_config()?.hidden_size, self.tokenizer()?);
        for embedding in embeddings {
            let (word, count, channels) = (&embedding.word, embedding.key.count(), embedding.key.channels());
            let refuse = |message: String| Err(Error::Lora(format!("the embedding {word:?}{message}")));
            if channels != width {
                return refuse(format!(
                    "'s vectors have {channels} channels, the word vectors of {} {width}; it was made for another kind of Stable \
                     Diffusion (1.x has 768 channels, 2.x 1024)",
                    self.path().display()
                ));
            }
            let most = tokenizer.max_length() - 2;
            if count > most {
                return refuse(format!(
                    " has {count} vectors, but {most} is the most that a prompt has room for"
                ));
            }
            let tag = Tag::new(&tokenizer, word)?.with_key(Arc::new(embedding.key.clone()));
            match tokenizer.words().iter().find(|known| known.reads_as(&tag)) {
                Some(known) if known.key() == tag.key() => continue,
                Some(_) => {
                    return refuse(
                        " is there twice, with other vectors; give one of them a word of its own, FILE=WORD"
                            .into(),
                    );
                }
                None => tokenizer.add_words([tag]),
            }
            self.embeddings.push(embedding);
        }
        Ok(())
    }
}
