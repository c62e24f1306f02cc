;; A command that wants a function nobody provides: the error must name it.
(module
  (import "env" "open_pod_bay_doors" (func $open))
  (memory (export "memory") 1)
  (func (export "_start") call $open))
