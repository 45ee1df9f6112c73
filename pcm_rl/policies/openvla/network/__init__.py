"""The network of OpenVLA-OFT in plain torch."""
