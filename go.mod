module kaspr.io/kaspr

go 1.26
