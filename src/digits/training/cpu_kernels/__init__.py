"""The Net as it is shipped, several times as fast on a CPU; without this folder all else works."""
