//! End-to-end tests: each one behaviour that a user of `ctr` would notice.
//!
//! * [`run`]: what a program sees, and what its user sees of it.
//! * [`start`]: how a program is found and entered, and what it is told.
//! * [`examples`]: the example images' cases, third-party programs among them.
//! * [`busybox`]: a shell, as a user's first container.
//! * [`files`]: paths, links, devices and many files.
//! * [`streams`]: standard input and output, large and slow.
//! * [`pause`]: a task that stands still.
//! * [`signals`]: ending a program from outside.
//! * [`memory`], whose limits hold.
//! * [`resources`]: what a task has used, limits that change, and the end for want of memory.
//! * [`refusals`]: bad input; each a clear error and nothing left behind.
//! * [`load`]: many tasks, in a row and at once.
//! * [`confine`]: what a spec takes from a program.
//! * [`exec`]: further programs in a running task.
//! * [`terminal`]: programs that somebody types at.
//! * [`faults`]: `kill -9` of our own processes while a program runs.
//! * [`walk`]: the same at every step of a task's journal, and of containerd too.
//! * [`restart`]: tasks outlive containerd.
//! * [`hooks`]: programs of the operator's, each in its place and once.
//! * [`logs`]: output into files and loggers.
//! * [`settings`]: the runtime's options.
//! * [`sandbox`]: a pod's sandbox and its containers.
//! * [`soak`]: many tasks with random lives.
//! * [`debug`]: what an operator sees of a stuck task.
//! * [`inspect`]: what an operator is told of any task.
//! * [`hostile`]: guests that have been taken over.
//! * [`ring0`]: guests that try all that ring 0 can.
//! * [`versions`]: the main things on other containerds.
//! * [`pods`]: what a kubelet asks for.
//! * [`check`]: the host is fit.

mod busybox;
mod check;
mod confine;
mod debug;
mod examples;
mod exec;
mod faults;
mod files;
mod hooks;
mod hostile;
mod inspect;
mod load;
mod logs;
mod memory;
mod pause;
mod pods;
mod refusals;
mod resources;
mod restart;
mod ring0;
mod run;
mod sandbox;
mod settings;
mod sharing;
mod signals;
mod soak;
mod start;
mod streams;
mod terminal;
mod versions;
mod walk;
