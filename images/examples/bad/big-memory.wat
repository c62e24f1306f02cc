;; A command whose memory is 3 GiB from the start: no limit of a test lets it begin.
(module
  (memory (export "memory") 49152)
  (func (export "_start")))
