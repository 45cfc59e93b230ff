//! A table of a config file, declared once.
//!
//! [`section!`] makes the struct, its defaults, and all that is done with a key: reading, checking, printing, hashing.
//! So a key stands in one place; how the whole is read, checked, printed and hashed stands in `parse.rs`, `check.rs`,
//! `print.rs` and `training/fingerprint.rs`, which know no key.

use std::path::Path;

use super::check::Problem;
use super::parse::Source;

/// Keys that stand together in a file.
pub(crate) trait Section {
    /// What may stand there.
    fn schema() -> Vec<Known>
    where
        Self: Sized;
    /// What stands there, in the order in which it is printed: keys first, then tables.
    fn entries(&self) -> Vec<Entry<'_>>;
    /// Takes over what the file says, and keeps the rest.
    fn read(&mut self, from: &Source<'_>) -> Result<(), Problem>;
    /// Makes every path relative to `folder`, unless it is absolute.
    fn relocate(&mut self, folder: &Path);
    /// What several values must satisfy together. Keys are named from this section on.
    fn together(&self) -> Result<(), Problem>;
    /// What is printed beside the name of the table.
    fn heading(&self) -> &'static str;
}

/// A name that may stand in a table.
pub(crate) struct Known {
    pub name: &'static str,
    /// What other trainers call it: never read, only told from a typing error.
    pub aliases: &'static [&'static str],
    /// What may stand within it, if it is a table, and whether that can be repeated.
    pub table: Option<(bool, Vec<Self>)>,
}

/// A key with its value, or the tables of a name.
pub(crate) enum Entry<'a> {
    Key(Key),
    Table { name: &'static str, repeated: bool, sections: Vec<&'a dyn Section> },
}

/// A key with its value.
pub(crate) struct Key {
    pub name: &'static str,
    /// As TOML; `None` where the key is not set.
    pub value: Option<String>,
    /// What it could be set to, where it can be left out.
    pub example: Option<String>,
    /// What is printed beside it.
    pub note: &'static str,
    /// What it must be and is not.
    pub fault: Option<String>,
    /// Whether what is learned depends on it.
    pub decides: bool,
}

/// A table within a table: always there, there or not (`Option`), there or turned off (`Switch`), or any number of them
/// (`Vec`).
pub(crate) trait Nested {
    const REPEATED: bool;
    /// Whether `name = false` can be said.
    const SWITCH: bool = false;
    /// Takes it.
    fn turn_off(&mut self) {}
    /// Whether that was said.
    fn is_off(&self) -> bool {
        false
    }
    fn schema() -> Vec<Known>;
    fn sections(&self) -> Vec<&dyn Section>;
    fn read(&mut self, tables: &[Source<'_>]) -> Result<(), Problem>;
    fn relocate(&mut self, folder: &Path);
}

impl<S: Section> Nested for S {
    const REPEATED: bool = false;

    fn schema() -> Vec<Known> {
        S::schema()
    }

    fn sections(&self) -> Vec<&dyn Section> {
        vec![self]
    }

    fn read(&mut self, tables: &[Source<'_>]) -> Result<(), Problem> {
        tables.iter().try_for_each(|table| table.fill(self))
    }

    fn relocate(&mut self, folder: &Path) {
        Section::relocate(self, folder);
    }
}

impl<S: Section + Default> Nested for Option<S> {
    const REPEATED: bool = false;

    fn schema() -> Vec<Known> {
        S::schema()
    }

    fn sections(&self) -> Vec<&dyn Section> {
        self.iter().map(|section| section as &dyn Section).collect()
    }

    fn read(&mut self, tables: &[Source<'_>]) -> Result<(), Problem> {
        tables.iter().try_for_each(|table| table.fill(self.get_or_insert_default()))
    }

    fn relocate(&mut self, folder: &Path) {
        self.iter_mut().for_each(|section| section.relocate(folder));
    }
}

/// A table that may be turned off.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Switch<S> {
    /// The file does not say: what holds depends on the rest of it.
    #[default]
    Unsaid,
    /// `name = false`.
    Off,
    /// The table is there.
    On(S),
}

impl<S> Switch<S> {
    /// What the table says, if it is there.
    pub fn on(&self) -> Option<&S> {
        match self {
            Self::On(section) => Some(section),
            Self::Unsaid | Self::Off => None,
        }
    }
}

impl<S: Section + Default> Nested for Switch<S> {
    const REPEATED: bool = false;

    const SWITCH: bool = true;

    fn turn_off(&mut self) {
        *self = Self::Off;
    }

    fn is_off(&self) -> bool {
        matches!(self, Self::Off)
    }

    fn schema() -> Vec<Known> {
        S::schema()
    }

    fn sections(&self) -> Vec<&dyn Section> {
        self.on().map(|section| section as &dyn Section).into_iter().collect()
    }

    fn read(&mut self, tables: &[Source<'_>]) -> Result<(), Problem> {
        let mut section = S::default();
        tables.iter().try_for_each(|table| table.fill(&mut section))?;
        *self = Self::On(section);
        Ok(())
    }

    fn relocate(&mut self, folder: &Path) {
        if let Self::On(section) = self {
            section.relocate(folder);
        }
    }
}

impl<S: Section + Default> Nested for Vec<S> {
    const REPEATED: bool = true;

    fn schema() -> Vec<Known> {
        S::schema()
    }

    fn sections(&self) -> Vec<&dyn Section> {
        self.iter().map(|section| section as &dyn Section).collect()
    }

    fn read(&mut self, tables: &[Source<'_>]) -> Result<(), Problem> {
        self.clear();
        for table in tables {
            let mut section = S::default();
            table.fill(&mut section)?;
            self.push(section);
        }
        Ok(())
    }

    fn relocate(&mut self, folder: &Path) {
        self.iter_mut().for_each(|section| section.relocate(folder));
    }
}

/// Declares a [`Section`]:
///
/// ```text
/// /// Docs.
/// pub struct NameConfig: "what is printed beside the table's name" {
///     /// Docs.
///     key: Type = default, "what is printed beside the key";
///     other: Part => flat;           // a section whose keys stand in this table too
///     inner: Section => table;       // or Option<Section>, Switch<Section>, or Vec<Section> = its default
/// }
/// together check_of_several_values;
/// ```
///
/// After a key's default may stand `example`, a function from the section to what an `Option` could be set to. After its
/// note may stand `check`, a function of the value (`check.rs` has them); `also`, what other trainers call it; and
/// `decides false`, where what is learned does not depend on it.
macro_rules! section {
    (
        $(#[$meta:meta])*
        pub struct $Section:ident $(: $heading:literal)? {
            $(
                $(#[$doc:meta])*
                $name:ident: $type:ty
                $(= $default:expr $(, example $example:expr)?, $note:literal
                    $(, check $check:expr)? $(, also $($alias:literal)*)? $(, decides $decides:literal)?)?
                $(=> $kind:ident $(= $initial:expr)?)?;
            )*
        }
        $(together $together:expr;)?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $Section {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Default for $Section {
            fn default() -> Self {
                Self { $($name: section!(@default $($default)? $($($initial)?)?),)* }
            }
        }

        #[expect(clippy::vec_init_then_push, reason = "flat sections are added in between")]
        impl $crate::config::section::Section for $Section {
            fn schema() -> Vec<$crate::config::section::Known> {
                let mut known = Vec::new();
                $(
                    $(known.push($crate::config::section::Known {
                        name: stringify!($name),
                        aliases: section!(@aliases $note $($($alias)*)?),
                        table: None,
                    });)?
                    $(section!(@schema $kind known $name $type);)?
                )*
                known
            }

            fn entries(&self) -> Vec<$crate::config::section::Entry<'_>> {
                let mut entries = Vec::new();
                $(
                    $(entries.push($crate::config::section::Entry::Key($crate::config::section::Key {
                        name: stringify!($name),
                        value: $crate::config::value::Value::print(&self.$name),
                        example: None::<$type>
                            $(.or(Some(<$type>::from($crate::config::section::of(self, $example)))))?
                            .and_then(|example| $crate::config::value::Value::print(&example)),
                        note: $note,
                        fault: None $(.or(($check)(&self.$name).err()))?,
                        decides: true $(&& $decides)?,
                    }));)?
                    $(section!(@entries $kind entries self $name);)?
                )*
                entries
            }

            fn read(
                &mut self,
                from: &$crate::config::parse::Source<'_>,
            ) -> Result<(), $crate::config::check::Problem> {
                $(
                    $(section!(@read $note from self $name $($check)?);)?
                    $(section!(@read $kind from self $name);)?
                )*
                Ok(())
            }

            fn relocate(&mut self, folder: &std::path::Path) {
                $(
                    $(section!(@relocate $note folder self $name);)?
                    $(section!(@relocate $kind folder self $name);)?
                )*
            }

            fn together(&self) -> Result<(), $crate::config::check::Problem> {
                $($(section!(@together $kind self $name);)?)*
                $($crate::config::section::of(self, $together)?;)?
                Ok(())
            }

            fn heading(&self) -> &'static str {
                concat!($($heading)?)
            }
        }
    };

    (@default) => { Default::default() };
    (@default $default:expr) => { $default };

    (@aliases $note:literal $($alias:literal)*) => { &[$($alias),*] };

    (@schema flat $known:ident $name:ident $type:ty) => {
        $known.extend(<$type as $crate::config::section::Section>::schema())
    };
    (@schema table $known:ident $name:ident $type:ty) => {
        $known.push($crate::config::section::Known {
            name: stringify!($name),
            aliases: &[],
            table: Some((
                <$type as $crate::config::section::Nested>::REPEATED,
                <$type as $crate::config::section::Nested>::schema(),
            )),
        })
    };

    (@entries flat $entries:ident $self:ident $name:ident) => {
        $entries.extend($crate::config::section::Section::entries(&$self.$name))
    };
    (@entries table $entries:ident $self:ident $name:ident) => {
        $entries.push($crate::config::section::tables(stringify!($name), &$self.$name))
    };

    (@read flat $from:ident $self:ident $name:ident) => {
        $crate::config::section::Section::read(&mut $self.$name, $from)?
    };
    (@read table $from:ident $self:ident $name:ident) => {
        $from.tables(stringify!($name), &mut $self.$name)?
    };
    (@read $note:literal $from:ident $self:ident $name:ident) => {
        $from.key(stringify!($name), &mut $self.$name, |_| Ok(()))?
    };
    (@read $note:literal $from:ident $self:ident $name:ident $check:expr) => {
        $from.key(stringify!($name), &mut $self.$name, |value| ($check)(value))?
    };

    (@together flat $self:ident $name:ident) => {
        $crate::config::section::Section::together(&$self.$name)?
    };
    (@together table $self:ident $name:ident) => {};

    (@relocate flat $folder:ident $self:ident $name:ident) => {
        $crate::config::section::Section::relocate(&mut $self.$name, $folder)
    };
    (@relocate table $folder:ident $self:ident $name:ident) => {
        $crate::config::section::Nested::relocate(&mut $self.$name, $folder)
    };
    (@relocate $note:literal $folder:ident $self:ident $name:ident) => {
        $crate::config::value::Value::relocate(&mut $self.$name, $folder)
    };
}
pub(crate) use section;

/// Calls `f`, whose argument is then known to be a reference of any lifetime.
pub(crate) fn of<S, T>(section: &S, f: impl Fn(&S) -> T) -> T {
    f(section)
}

pub(crate) fn tables<'a, N: Nested>(name: &'static str, tables: &'a N) -> Entry<'a> {
    if tables.is_off() {
        let value = Some("false".to_owned());
        return Entry::Key(Key {
            name,
            value,
            example: None,
            note: "turned off",
            fault: None,
            decides: true,
        });
    }
    Entry::Table { name, repeated: N::REPEATED, sections: tables.sections() }
}
