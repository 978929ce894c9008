from unbranch.cli import main

main()
