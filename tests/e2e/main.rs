//! End-to-end tests: each one behaviour that a user of `ctr` would notice.
//!
//! * [`run`]: what a program sees, and what its user sees of it.
//! * [`examples`]: the example images' cases, third-party programs among them.
//! * [`busybox`]: a shell, as a user's first container.
//! * [`streams`]: standard input and output, large and slow.
//! * [`signals`]: ending a program from outside.
//! * [`memory`], whose limits hold.
//! * [`refusals`]: bad input; each a clear error and nothing left behind.
//! * [`load`]: many tasks, in a row and at once.
//! * [`faults`]: `kill -9` of our own processes.
//! * [`hostile`]: guests that have been taken over.

mod busybox;
mod examples;
mod faults;
mod hostile;
mod load;
mod memory;
mod refusals;
mod run;
mod signals;
mod streams;
