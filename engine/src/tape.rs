//! The way back: a list of closures that ops push as they run.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use crate::{Error, Result, Tensor, TensorId};

type Backward = Box<dyn FnOnce(&Tensor, &mut Grads) -> Result<()>>;
/// Adds two tensors; the tape knows no op, so whoever makes one says how.
type Add = fn(&Tensor, &Tensor) -> Result<Tensor>;

struct Record {
    output: TensorId,
    backward: Backward,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// Nothing is tracked.
    Off,
    /// Tracking is followed, closures are dropped: to learn whether an output needs a gradient.
    Dry,
    /// Closures are kept.
    On,
}

/// Records the backward closures of a forward pass.
///
/// An output is tracked if any input is; an op whose inputs are all frozen records nothing, so frozen layers before
/// the first parameter cost nothing.
pub struct Tape {
    mode: Mode,
    add: Add,
    tracked: RefCell<HashSet<TensorId>>,
    retained: RefCell<HashSet<TensorId>>,
    sinks: RefCell<HashMap<TensorId, Tensor>>,
    records: RefCell<Vec<Record>>,
}

impl Tape {
    /// A tape that records; `add` sums two gradients.
    pub fn new(add: Add) -> Tape {
        Tape::with(Mode::On, add)
    }

    /// A tape that records nothing: inference.
    pub fn off() -> Tape {
        Tape::with(Mode::Off, |a, _| {
            Err(Error::op("tape", format!("a tape that is off was asked to add {a:?}")))
        })
    }

    fn with(mode: Mode, add: Add) -> Tape {
        let (tracked, retained, sinks, records) = Default::default();
        Tape { mode, add, tracked, retained, sinks, records }
    }

    /// Marks a tensor as wanting a gradient.
    pub fn track(&self, tensor: &Tensor) {
        self.tracked.borrow_mut().insert(tensor.id());
    }

    /// Marks a parameter: its gradient is accumulated into `sink` (f32, same shape) instead of a tensor of its own.
    pub fn track_into(&self, parameter: &Tensor, sink: &Tensor) {
        self.track(parameter);
        self.sinks.borrow_mut().insert(parameter.id(), sink.clone());
    }

    /// Keeps the gradient of an intermediate tensor, to be read after [`Tape::backward`].
    pub fn retain(&self, tensor: &Tensor) {
        self.retained.borrow_mut().insert(tensor.id());
    }

    /// Whether a gradient of this tensor is wanted.
    pub fn tracks(&self, tensor: &Tensor) -> bool {
        self.mode != Mode::Off && self.tracked.borrow().contains(&tensor.id())
    }

    /// Number of closures kept.
    pub fn len(&self) -> usize {
        self.records.borrow().len()
    }

    /// Whether no closure is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Notes that `output` came from `inputs`. `backward` gets the gradient of `output` and adds those of the inputs
    /// to [`Grads`]; it is dropped at once if no input is tracked.
    pub fn record(
        &self,
        inputs: &[&Tensor],
        output: &Tensor,
        backward: impl FnOnce(&Tensor, &mut Grads) -> Result<()> + 'static,
    ) {
        if !inputs.iter().any(|t| self.tracks(t)) {
            return;
        }
        self.track(output);
        if self.mode == Mode::On {
            self.records.borrow_mut().push(Record { output: output.id(), backward: Box::new(backward) });
        }
    }

    /// Runs `block` without keeping what it saves, and runs it again when its gradient is wanted: memory for time. The
    /// gradients have the same bits as without, since the way back takes the same steps in the same order.
    ///
    /// # Errors
    /// Those of `block`.
    pub fn recompute<E: From<Error> + Into<Error>>(
        &self,
        block: impl Fn(&Tape) -> Result<Tensor, E> + 'static,
    ) -> Result<Tensor, E> {
        if self.mode != Mode::On {
            return block(self);
        }
        let tracked = self.tracked.borrow().clone();
        let fork = |mode| {
            let tape = Tape::with(mode, self.add);
            *tape.tracked.borrow_mut() = tracked.clone();
            tape
        };
        let dry = fork(Mode::Dry);
        let output = block(&dry)?;
        if dry.tracks(&output) {
            self.track(&output);
            let again = fork(Mode::On);
            let backward = move |grad_out: &Tensor, grads: &mut Grads| {
                let output = block(&again).map_err(Into::into)?;
                grads.tracked.extend(again.tracked.into_inner());
                grads.map.insert(output.id(), grad_out.clone());
                grads.go_back(again.records.into_inner())
            };
            self.records.borrow_mut().push(Record { output: output.id(), backward: Box::new(backward) });
        }
        Ok(output)
    }

    /// Goes back from `root`, whose gradient is `grad_out`. What is left in the result are the gradients of tracked
    /// tensors that no op produced (inputs and parameters without a sink) and those of retained ones.
    pub fn backward(self, root: &Tensor, grad_out: Tensor) -> Result<Grads> {
        let mut grads = Grads {
            map: HashMap::from([(root.id(), grad_out)]),
            kept: HashMap::new(),
            tracked: self.tracked.into_inner(),
            retained: self.retained.into_inner(),
            sinks: self.sinks.into_inner(),
            add: self.add,
        };
        grads.go_back(self.records.into_inner())?;
        Ok(grads)
    }
}

/// Gradients on the way back, by the content they belong to.
pub struct Grads {
    map: HashMap<TensorId, Tensor>,
    kept: HashMap<TensorId, Tensor>,
    tracked: HashSet<TensorId>,
    retained: HashSet<TensorId>,
    sinks: HashMap<TensorId, Tensor>,
    add: Add,
}

impl Grads {
    fn go_back(&mut self, records: Vec<Record>) -> Result<()> {
        for record in records.into_iter().rev() {
            if let Some(grad_out) = self.map.remove(&record.output) {
                if self.retained.contains(&record.output) {
                    self.kept.insert(record.output, grad_out.clone());
                }
                (record.backward)(&grad_out, self)?;
            }
        }
        Ok(())
    }

    /// Whether a gradient of this content is wanted.
    pub fn wants(&self, id: TensorId) -> bool {
        self.tracked.contains(&id)
    }

    /// The gradient gathered so far, if any.
    pub fn get(&self, tensor: &Tensor) -> Option<&Tensor> {
        self.map.get(&tensor.id()).or_else(|| self.kept.get(&tensor.id()))
    }

    /// Takes the gradient gathered so far out, for an op that adds its own share to it while computing.
    pub fn take(&mut self, id: TensorId) -> Option<Tensor> {
        self.map.remove(&id)
    }

    /// Adds a share of a gradient.
    pub fn add_id(&mut self, id: TensorId, grad: Tensor) -> Result<()> {
        let sum = match self.map.remove(&id) {
            Some(before) => (self.add)(&before, &grad)?,
            None => grad,
        };
        self.map.insert(id, sum);
        Ok(())
    }

    /// Where a parameter's f32 gradient of this shape is accumulated: its sink, or a tensor of zeros made on first use.
    pub fn sink(&mut self, parameter: &Tensor) -> Result<Tensor> {
        let id = parameter.id();
        if let Some(sink) = self.sinks.get(&id).or_else(|| self.map.get(&id)) {
            return Ok(sink.clone());
        }
        let zeros = Tensor::zeros(parameter.gpu(), parameter.shape(), crate::DType::F32)?;
        self.map.insert(id, zeros.clone());
        Ok(zeros)
    }
}
