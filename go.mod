module github.com/vxbpf/vxbpf

go 1.26.0
