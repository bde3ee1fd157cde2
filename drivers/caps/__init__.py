"""Power caps that servers keep themselves, set on their management controllers (BMCs)."""
