"""What tests/campaign.py is made of."""
