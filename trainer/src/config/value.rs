//! What a key can hold.

use std::path::{Path, PathBuf};

use strata_engine::DType;
use strata_model::PredictionType;
use toml::de::{DeInteger, DeValue};

/// A value of a config file.
pub(crate) trait Value: Sized {
    /// Reads it, or says what it must be.
    fn read(value: &DeValue<'_>) -> Result<Self, String>;
    /// As TOML that reads back as the same value, in one form alone; `None` where there is none.
    fn print(&self) -> Option<String>;
    /// Makes a path relative to `folder`, unless it is absolute.
    fn relocate(&mut self, _folder: &Path) {}
    /// The largest value, of types that have one: what a check says of it is what it says of all that is no such value.
    fn largest() -> Option<Self> {
        None
    }
}

/// The kinds of models that are trained.
const PREDICTIONS: [(&str, PredictionType); 2] =
    [("epsilon", PredictionType::Epsilon), ("v", PredictionType::VPrediction)];

fn whole(integer: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

macro_rules! whole_numbers {
    ($($Number:ty),*) => {$(
        impl Value for $Number {
            fn read(value: &DeValue<'_>) -> Result<Self, String> {
                let number = match value {
                    DeValue::Integer(integer) => whole(integer).and_then(|n| n.try_into().ok()),
                    _ => None,
                };
                number.ok_or_else(|| format!("must be a whole number from 0 to {}", Self::MAX))
            }

            fn print(&self) -> Option<String> {
                Some(self.to_string())
            }

            fn largest() -> Option<Self> {
                Some(Self::MAX)
            }
        }
    )*};
}
whole_numbers!(u32, u64, usize);

/// A type to store floats in.
impl Value for DType {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let types = [Self::F32, Self::F16];
        let wanted = types.into_iter().find(|dtype| value.as_str() == Some(dtype.wgsl()));
        wanted.ok_or_else(|| must_be_one_of(&types.map(Self::wgsl), value))
    }

    fn print(&self) -> Option<String> {
        Some(format!("{:?}", self.wgsl()))
    }
}

/// What a model predicts.
impl Value for PredictionType {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let wanted = PREDICTIONS.into_iter().find(|(name, _)| value.as_str() == Some(name));
        wanted.map(|(_, kind)| kind).ok_or_else(|| must_be_one_of(&PREDICTIONS.map(|(name, _)| name), value))
    }

    fn print(&self) -> Option<String> {
        let (name, _) = PREDICTIONS.into_iter().find(|(_, kind)| kind == self)?;
        Some(format!("{name:?}"))
    }
}

impl Value for f64 {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let number = match value {
            DeValue::Float(float) => float.as_str().parse().ok(),
            DeValue::Integer(integer) => whole(integer).map(|n| n as Self),
            _ => None,
        };
        number.ok_or_else(|| "must be a number".to_owned())
    }

    /// Rust's shortest form that reads back as the same number is also TOML's.
    fn print(&self) -> Option<String> {
        Some(format!("{self:?}"))
    }
}

impl Value for bool {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| "must be true or false".to_owned())
    }

    fn print(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for String {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_str().map(str::to_owned).ok_or_else(|| "must be text in quotes".to_owned())
    }

    fn print(&self) -> Option<String> {
        Some(toml::Value::from(self.as_str()).to_string())
    }
}

impl Value for PathBuf {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_str().map(Self::from).ok_or_else(|| "must be a path in quotes".to_owned())
    }

    fn print(&self) -> Option<String> {
        self.to_string_lossy().into_owned().print()
    }

    fn relocate(&mut self, folder: &Path) {
        *self = folder.join(&self);
    }
}

impl<V: Value> Value for Option<V> {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        V::read(value).map(Some)
    }

    fn print(&self) -> Option<String> {
        self.as_ref()?.print()
    }

    fn relocate(&mut self, folder: &Path) {
        self.iter_mut().for_each(|value| value.relocate(folder));
    }

    fn largest() -> Option<Self> {
        V::largest().map(Some)
    }
}

impl<V: Value> Value for Vec<V> {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let items = value.as_array().ok_or_else(|| "must be a list: [first, second, …]".to_owned())?;
        items.iter().map(|item| V::read(item.get_ref())).collect()
    }

    fn print(&self) -> Option<String> {
        let items: Option<Vec<String>> = self.iter().map(V::print).collect();
        Some(format!("[{}]", items?.join(", ")))
    }

    fn relocate(&mut self, folder: &Path) {
        self.iter_mut().for_each(|value| value.relocate(folder));
    }
}

impl Value for [f64; 2] {
    fn read(value: &DeValue<'_>) -> Result<Self, String> {
        let numbers = Vec::<f64>::read(value).ok().and_then(|numbers| numbers.try_into().ok());
        numbers.ok_or_else(|| "must be two numbers: [first, second]".to_owned())
    }

    fn print(&self) -> Option<String> {
        self.to_vec().print()
    }
}

/// The known name with the fewest edits to `name`, where at most half of its letters need one.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (strsim::levenshtein(name, known), known))
        .filter(|(edits, known)| 2 * edits <= known.chars().count())
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, known)| known)
}

/// What a choice of names must be.
pub(crate) fn must_be_one_of(names: &[&str], value: &DeValue<'_>) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    let near = value.as_str().and_then(|name| nearest(name, names.iter().copied()));
    let hint = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
    match quoted.split_last() {
        Some((last, others)) if !others.is_empty() => {
            format!("must be {} or {last}{hint}", others.join(", "))
        }
        _ => format!("must be {}{hint}", quoted.concat()),
    }
}

/// Declares an enum whose variants have names in a config: `Variant = "name",`.
macro_rules! choice {
    (
        $(#[$meta:meta])*
        pub enum $Choice:ident { $($(#[$doc:meta])* $Variant:ident = $name:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $Choice { $($(#[$doc])* $Variant,)* }

        impl $Choice {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$Variant),*];

            /// Its name in a config.
            pub fn name(self) -> &'static str {
                match self { $(Self::$Variant => $name,)* }
            }
        }

        impl $crate::config::value::Value for $Choice {
            fn read(value: &toml::de::DeValue<'_>) -> Result<Self, String> {
                match value.as_str() {
                    $(Some($name) => Ok(Self::$Variant),)*
                    _ => Err($crate::config::value::must_be_one_of(&[$($name),*], value)),
                }
            }

            fn print(&self) -> Option<String> {
                Some(format!("{:?}", self.name()))
            }
        }
    };
}
pub(crate) use choice;
