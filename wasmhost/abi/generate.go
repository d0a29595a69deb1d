package abi

//go:generate go run ./gen ../.. ../../pyguest/include/abi.h
