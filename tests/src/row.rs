//! A row of the table: one op at one shape.

use half::f16;
use strata_engine::{DType, Result, Tape, Tensor};

use crate::Random;

type Run = Box<dyn Fn(&Tape, &[Tensor], DType) -> Result<Tensor> + Send + Sync>;
type Reference = Box<dyn Fn(&[Vec<f64>]) -> Vec<f64> + Send + Sync>;

/// What an input is to the op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An activation, whose gradient has its own dtype.
    Tracked,
    /// A parameter, whose gradient is f32 and accumulated in a sink.
    Parameter,
    /// Never has a gradient.
    Frozen,
}

/// One float input.
#[derive(Clone, Debug)]
pub struct Input {
    /// What it is called in errors.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What it is to the op.
    pub role: Role,
    /// f32 whatever the row's dtype.
    pub always_f32: bool,
    /// Its content, before it is rounded to the dtype.
    pub values: Vec<f32>,
}

impl Input {
    /// Its dtype in a row of this dtype.
    pub fn dtype(&self, row: DType) -> DType {
        if self.always_f32 { DType::F32 } else { row }
    }

    /// Its content, rounded to its dtype.
    pub fn rounded(&self, row: DType) -> Vec<f32> {
        match self.dtype(row) {
            DType::F16 => self.values.iter().map(|v| f16::from_f32(*v).to_f32()).collect(),
            DType::F32 | DType::U32 => self.values.clone(),
        }
    }
}

/// An op at one shape, how to run it, and what it should give.
pub struct Row {
    /// Op and shape; also the seed of its numbers.
    pub name: String,
    /// The op's float inputs.
    pub inputs: Vec<Input>,
    /// Shape of the output.
    pub out: Vec<usize>,
    /// The output is f32 whatever the row's dtype.
    pub out_f32: bool,
    /// Terms of the longest sum, forward or backward: what the tolerance grows with.
    pub k: usize,
    pub(crate) run: Run,
    pub(crate) reference: Reference,
    random: Random,
}

impl Row {
    /// A row without inputs and without an op yet. `k` counts the terms of the op's longest sum, forward or backward.
    pub fn new(name: impl Into<String>, out: &[usize], k: usize) -> Self {
        let name = name.into();
        let random = Random::new(&name);
        let run: Run = Box::new(|_, t, _| Ok(t[0].clone()));
        let reference: Reference = Box::new(|v| v[0].clone());
        Self { name, inputs: Vec::new(), out: out.to_vec(), out_f32: false, k, run, reference, random }
    }

    fn push(mut self, name: &'static str, shape: &[usize], role: Role) -> Self {
        let values = self.random.normal(shape.iter().product());
        self.inputs.push(Input { name, shape: shape.to_vec(), role, always_f32: false, values });
        self
    }

    /// Adds an activation of standard normal numbers.
    #[must_use]
    pub fn input(self, name: &'static str, shape: &[usize]) -> Self {
        self.push(name, shape, Role::Tracked)
    }

    /// Adds a frozen tensor of standard normal numbers.
    #[must_use]
    pub fn frozen(self, name: &'static str, shape: &[usize]) -> Self {
        self.push(name, shape, Role::Frozen)
    }

    /// Adds a frozen tensor that is f32 whatever the row's dtype (bias, gamma, gates).
    #[must_use]
    pub fn frozen_f32(self, name: &'static str, shape: &[usize]) -> Self {
        self.push(name, shape, Role::Frozen).wide()
    }

    /// The input added last is f32 whatever the row's dtype.
    #[must_use]
    pub fn wide(mut self) -> Self {
        self.last().always_f32 = true;
        self
    }

    /// What was tracked so far and the output are f32 whatever the row's dtype; weights and parameters have it.
    #[must_use]
    pub fn stream(mut self) -> Self {
        self.inputs.iter_mut().filter(|i| i.role == Role::Tracked).for_each(|i| i.always_f32 = true);
        self.out_f32()
    }

    /// Adds a parameter of standard normal numbers.
    #[must_use]
    pub fn parameter(self, name: &'static str, shape: &[usize]) -> Self {
        self.push(name, shape, Role::Parameter)
    }

    fn last(&mut self) -> &mut Input {
        self.inputs.last_mut().expect("a row is given an input before its values are changed")
    }

    /// Changes the values of the input added last: `f(index, value)`.
    #[must_use]
    pub fn map(mut self, f: impl Fn(usize, f32) -> f32) -> Self {
        self.last().values.iter_mut().enumerate().for_each(|(i, v)| *v = f(i, *v));
        self
    }

    /// Multiplies the input added last.
    #[must_use]
    pub fn scale(self, factor: f64) -> Self {
        self.map(|_, v| v * factor as f32)
    }

    /// The output is f32 whatever the row's dtype.
    #[must_use]
    pub fn out_f32(mut self) -> Self {
        self.out_f32 = true;
        self
    }

    /// How to run the op; tensors come in the order the inputs were added.
    #[must_use]
    pub fn run(self, run: impl Fn(&Tape, &[Tensor]) -> Result<Tensor> + Send + Sync + 'static) -> Self {
        self.run_as(move |tape, inputs, _| run(tape, inputs))
    }

    /// As [`Row::run`], for ops that must be told the row's dtype.
    #[must_use]
    pub fn run_as(
        mut self,
        run: impl Fn(&Tape, &[Tensor], DType) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Self {
        self.run = Box::new(run);
        self
    }

    /// What the op should give; inputs come in the order they were added.
    #[must_use]
    pub fn reference(mut self, reference: impl Fn(&[Vec<f64>]) -> Vec<f64> + Send + Sync + 'static) -> Self {
        self.reference = Box::new(reference);
        self
    }
}
