//! Files of models and LoRAs: what is read, what is written, and what is refused.

mod configs;
mod lora_file;
mod scheduler;
mod tensors;
mod tokenizer;
