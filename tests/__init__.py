# what compiles fastest, for programs that a test starts and that compile nothing for TPUs: libtpu refuses flags that it
# does not know. Older emitters compile a network in half the time, and one part of code takes 8 % less than many parts
OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
