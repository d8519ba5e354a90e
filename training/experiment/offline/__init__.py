"""What a new artifact would have earned, from exposures whose order was drawn; and whether to believe that."""
