"""The lake as Apache Iceberg tables, for engines that read tables of a catalog. This room alone imports pyiceberg."""
