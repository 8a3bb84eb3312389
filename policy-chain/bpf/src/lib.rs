//! Policy in the kernel: eBPF programs, their maps, and how they are attached.
