# for programs that a test starts and that compile nothing for TPUs: libtpu refuses flags that it does not know
OLDER_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
